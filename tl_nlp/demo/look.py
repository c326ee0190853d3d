"""How the page looks: its theme, light and dark, and its keys. Nothing of it is fetched from outside."""

from __future__ import annotations

import gradio as gr

_SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.Theme:
    """Slate with one blue, whose contrast holds in light and dark; the fonts are the reader's own."""
    return gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=_SANS, font_mono=_MONO, radius_size="md", text_size="md"
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )


# Blue and orange are told apart by nearly everybody (Okabe & Ito 2008), and no mark is told by its colour alone
CSS = """
.gradio-container { max-width: min(1180px, 100vw) !important; margin: 0 auto !important; }
.gradio-container :is(.main, .wrap, main, .column, .tabs, .tabitem, .block) { min-width: 0; }
.gradio-container .gallery, .gradio-container .table-wrap { max-width: 100%; overflow-x: auto; }
.tl-answer { min-height: 9.5rem; padding: .75rem 1rem; line-height: 1.6; overflow-wrap: anywhere;
  background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
  border-radius: var(--block-radius); }
.tl-headline { font-size: 1.35rem; font-weight: 650; margin: 0 0 .5rem; }
.tl-note { font-size: .9rem; color: var(--body-text-color-subdued); margin: .5rem 0 0; }
.tl-warning { border-left: 4px solid #b45309; padding: .25rem .75rem; margin: .5rem 0; }
.tl-bar { display: grid; grid-template-columns: minmax(5rem, 30%) 1fr 3.5rem; gap: .6rem; margin: .3rem 0; }
.tl-bar { align-items: center; }
.tl-track { position: relative; height: .8rem; border-radius: .4rem; background: var(--border-color-primary); }
.tl-fill { position: absolute; inset: 0 auto 0 0; border-radius: .4rem; background: #1d6fb8; }
.tl-tick { position: absolute; top: -.2rem; bottom: -.2rem; width: 2px; background: var(--body-text-color); }
.tl-share { text-align: right; font-variant-numeric: tabular-nums; }
.tl-table table { border-collapse: collapse; width: 100%; }
.tl-table :is(table, thead, tbody, tr, th, td) { border: 0 !important; }
.tl-table :is(th, td) { text-align: left; padding: .35rem .6rem; vertical-align: top; }
.tl-table :is(th, td) { border-bottom: 1px solid var(--border-color-primary) !important; }
.tl-table { overflow-x: auto; }
.tl-answer mark { color: inherit; border-radius: .2rem; padding: 0 .1rem; }
mark.tl-chosen { background: rgba(29, 111, 184, .22); border-bottom: 2px solid #1d6fb8; }
mark.tl-invented { background: rgba(230, 159, 0, .28); border-bottom: 2px dashed #b45309; }
mark.tl-differs { background: rgba(230, 159, 0, .28); font-weight: 650; }
mark.tl-up { background: rgba(29, 111, 184, .2); border-bottom: 2px solid #1d6fb8; }
mark.tl-down { background: rgba(230, 159, 0, .25); border-bottom: 2px dotted #b45309; }
.tl-kbd { font-size: .85rem; color: var(--body-text-color-subdued); }
kbd { border: 1px solid var(--border-color-primary); border-radius: .25rem; padding: 0 .3rem; font-size: .85em; }
iframe.tl-report { width: 100%; height: 75vh; border: 1px solid var(--border-color-primary); background: white; }
button[role="tab"].selected { color: var(--primary-700) !important; }
.dark button[role="tab"].selected { color: var(--primary-300) !important; }
.tl-charts { display: flex; flex-wrap: wrap; gap: .75rem; }
.tl-answer svg { background: white; border-radius: .4rem; max-width: 100%; height: auto; }
@media (max-width: 640px) { .tl-bar { grid-template-columns: minmax(4rem, 34%) 1fr 3rem; } }
"""

HEAD = """
<script>
// Ctrl+Enter presses the main button beside the text; a digit gives the label of that number
document.addEventListener("keydown", (event) => {
  const typing = /^(TEXTAREA|INPUT|SELECT)$/.test(event.target.tagName);
  const shown = (element) => element.offsetParent !== null && !element.disabled;
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter" && typing) {
    const panel = event.target.closest("[role=tabpanel]") || document;
    const button = [...panel.querySelectorAll("button.primary")].find(shown);
    if (button) { event.preventDefault(); setTimeout(() => button.click(), 50); }
  }
  if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const wanted = /^[1-9]$/.test(event.key) ? ".tl-label-" + event.key
      : { u: ".tl-undo", s: ".tl-skip" }[event.key.toLowerCase()];
    const button = wanted && [...document.querySelectorAll(wanted)].find(shown);
    if (button) { event.preventDefault(); button.click(); }
  }
});
</script>
"""
