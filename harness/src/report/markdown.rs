//! The report as Markdown: the tables, and links to the figures; and the part of it that a README carries.

use super::Report;
use super::table::Table;

/// The whole report.
#[must_use]
pub(super) fn report(report: &Report) -> String {
    let mut text = format!("# {}\n\n{}\n", report.title, super::LEAD);
    for warning in &report.warnings {
        text += &format!("\n**{warning}**\n");
    }
    text += "\n## Summary\n";
    text += &tables(&report.tables);
    for (name, figures) in report.drawn.sections.iter().filter(|(_, figures)| !figures.is_empty()) {
        text += &format!("\n## {name}\n");
        for source in report.provenance(name) {
            text += &format!(
                "\n`{}`, {}: `{}`. {}; {}.\n",
                source.folder, source.started_utc, source.command, source.program, source.machine
            );
            if !source.setting.is_empty() {
                text += &format!("Setting: {}.\n", source.setting);
            }
        }
        for figure in figures {
            text += &format!(
                "\n### {}\n\n{}\n\n![{}](figures/{}.svg)\n\n{}\n",
                figure.title, figure.says, figure.title, figure.id, figure.how
            );
        }
    }
    if !report.drawn.missing.is_empty() {
        text += "\n## Figures without data\n\n";
        for (name, needs) in &report.drawn.missing {
            text += &format!("- {name}: {needs}\n");
        }
    }
    text
}

/// Tables, each with its title and note.
#[must_use]
pub(super) fn tables(tables: &[Table]) -> String {
    let mut text = String::new();
    for table in tables {
        text += &format!("\n**{}**\n\n", table.title);
        text += &row(&table.head);
        text += &row(&table.head.iter().map(|_| "---".to_owned()).collect::<Vec<_>>());
        for cells in &table.rows {
            text += &row(cells);
        }
        text += &format!("\n{}\n", table.note);
    }
    text
}

fn row(cells: &[String]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    format!("| {} |\n", cells.join(" | "))
}
