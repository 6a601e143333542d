//! The report as one HTML page that needs nothing else: styles, fonts and figures are in it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Report;
use super::draw::Figure;
use super::png::{REGULAR, SEMI_BOLD};
use super::study::Provenance;
use super::table::Table;

/// The page.
#[must_use]
pub(super) fn page(report: &Report) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (report.title) }
                style { (PreEscaped(fonts())) (PreEscaped(include_str!("figure.css"))) (PreEscaped(include_str!("page.css"))) }
            }
            body {
                header {
                    h1 { (report.title) }
                    p class="soft" { (super::LEAD) }
                    @for warning in &report.warnings { p class="warn" { (warning) } }
                }
                (contents(report))
                @if !report.tables.is_empty() {
                    h2 id="summary" { "Summary" }
                    @for table in &report.tables { (summary(table)) }
                }
                @for (name, figures) in report.drawn.sections.iter().filter(|(_, figures)| !figures.is_empty()) {
                    h2 id={ "section-" (name) } { (name) }
                    @for source in report.provenance(name) { (provenance(source)) }
                    @for drawn in figures { (figure(drawn)) }
                }
                (missing(report))
            }
        }
    };
    page.into_string()
}

fn fonts() -> String {
    let face = |bytes: &[u8], weight: u32| {
        format!(
            "@font-face{{font-family:Inter;font-weight:{weight};src:url(data:font/otf;base64,{})}}\n",
            STANDARD.encode(bytes)
        )
    };
    face(REGULAR, 400) + &face(SEMI_BOLD, 600)
}

fn contents(report: &Report) -> Markup {
    let figures = report.drawn.sections.iter().flat_map(|(_, figures)| figures);
    html! {
        nav { ul {
            @if !report.tables.is_empty() { li { a href="#summary" { "Summary" } } }
            @for drawn in figures { li { a href={ "#" (drawn.id) } { (drawn.title) } } }
            @if !report.drawn.missing.is_empty() { li { a href="#missing" { "Figures without data" } } }
        } }
    }
}

fn summary(table: &Table) -> Markup {
    html! {
        h3 { (table.title) }
        div class="scroll" { table {
            thead { tr { @for name in &table.head { th scope="col" { (name) } } } }
            tbody { @for row in &table.rows { tr { @for words in row { td { (words) } } } } }
        } }
        p class="note" { (table.note) }
    }
}

fn provenance(source: &Provenance) -> Markup {
    html! {
        dl {
            dt { "folder" } dd { code { (source.folder) } }
            dt { "command" } dd { code { (source.command) } }
            dt { "begun" } dd { (source.started_utc) }
            dt { "program" } dd { (source.program) }
            dt { "machine" } dd { (source.machine) }
            @if !source.setting.is_empty() { dt { "setting" } dd { (source.setting) } }
        }
    }
}

fn figure(drawn: &Figure) -> Markup {
    html! {
        section id=(drawn.id) {
            h3 { (drawn.title) }
            p { (drawn.says) }
            figure {
                div class="scroll" { (drawn.inline()) }
                figcaption {
                    p { (drawn.how) }
                    p { "Data: " code { (drawn.command) } }
                }
            }
        }
    }
}

fn missing(report: &Report) -> Markup {
    html! {
        @if !report.drawn.missing.is_empty() {
            h2 id="missing" { "Figures without data" }
            ul class="soft" {
                @for (name, needs) in &report.drawn.missing { li { (name) ": " (needs) } }
            }
        }
    }
}
