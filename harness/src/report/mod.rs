//! `harness report`: from recorded files to a page, figures and tables. The same files give the same bytes: there is no clock
//! and no order of hashing in it.
//!
//! ```text
//!   load     folders -> Study            the only part that knows files; refuses what cannot be reported
//!   cell     settings of trials          grouped into facets and series
//!   figures, tables, keyvalue, safety    Study -> drawings and words, pure
//!   page, markdown, png, splice          the same as files
//!   compare  two studies -> differences
//! ```
//!
//! It deliberately does not know how results are recorded: it reads what docs/RESULTS.md says.

pub mod cell;
pub mod compare;
pub mod draw;
pub mod figures;
mod keyvalue;
pub mod load;
mod markdown;
mod page;
mod png;
mod publish;
pub mod reference;
pub mod rows;
pub mod safety;
mod splice;
pub mod study;
pub mod table;
mod tables;

use std::collections::BTreeSet;

pub use publish::{check, publish};
pub use splice::Document;

use figures::Drawn;
use reference::Reference;
use study::{Provenance, Study};
use table::Table;

/// What every report begins with.
const LEAD: &str = "Made by `harness report` from recorded files alone. Medians are lower medians; intervals are 95 % bootstrap \
intervals. What the figures count is explained in docs/METHODOLOGY.md, the files in docs/RESULTS.md.";

/// A report before it is written.
#[derive(Debug)]
pub struct Report {
    title: String,
    warnings: Vec<String>,
    tables: Vec<Table>,
    drawn: Drawn,
    sources: Vec<(String, Vec<Provenance>)>,
}

/// A file of a report: its path inside the report's folder, and its bytes.
pub type File = (String, Vec<u8>);

impl Report {
    /// The report of a study.
    ///
    /// # Errors
    /// If the program's own reference cannot be read.
    pub fn of(study: &Study) -> anyhow::Result<Self> {
        let reference = Reference::load()?;
        let mut sources: Vec<(String, Vec<Provenance>)> = study
            .experiments
            .iter()
            .chain(&study.dictionaries)
            .map(|experiment| (experiment.name.clone(), experiment.provenance.clone()))
            .collect();
        let elections = study.elections.iter().map(|elections| elections.provenance.clone()).collect();
        sources.push(("elections".into(), elections));
        Ok(Self {
            title: "Gossip versus Raft for federated-learning checkpoints".into(),
            warnings: warnings(study, &sources),
            tables: tables::tables(study, &reference),
            drawn: figures::draw(study, &reference),
            sources,
        })
    }

    /// Where a section's data come from.
    fn provenance(&self, section: &str) -> impl Iterator<Item = &Provenance> {
        self.sources.iter().filter(move |(name, _)| name == section).flat_map(|(_, sources)| sources)
    }

    /// Figures that were left out for want of data, and what each needs.
    #[must_use]
    pub fn missing(&self) -> &[(String, String)] {
        &self.drawn.missing
    }

    /// Every file of the report.
    ///
    /// # Errors
    /// If a figure cannot be drawn as PNG.
    pub fn files(&self) -> anyhow::Result<Vec<File>> {
        let painter = png::Painter::new();
        let mut files = vec![
            ("index.html".to_owned(), page::page(self).into_bytes()),
            ("report.md".to_owned(), markdown::report(self).into_bytes()),
        ];
        for figure in self.drawn.sections.iter().flat_map(|(_, figures)| figures) {
            let svg = figure.file();
            files.push((format!("figures/{}.png", figure.id), painter.png(&svg)?));
            files.push((format!("figures/{}.svg", figure.id), svg.into_bytes()));
        }
        Ok(files)
    }

    /// The part that a README carries.
    #[must_use]
    pub fn section(&self) -> String {
        let warnings: String = self.warnings.iter().map(|warning| format!("\n**{warning}**\n")).collect();
        format!("{}{}\n", markdown::tables(&self.tables).trim_start_matches('\n'), warnings)
    }
}

/// What a reader has to know before the numbers.
fn warnings(study: &Study, sources: &[(String, Vec<Provenance>)]) -> Vec<String> {
    let mut warnings = Vec::new();
    let all = || sources.iter().flat_map(|(_, sources)| sources);
    if all().any(|source| source.debug_build) {
        warnings.push("Some of these data are of a debug build: their times mean little.".into());
    }
    let programs: BTreeSet<&str> = all().map(|source| source.program.as_str()).collect();
    let machines: BTreeSet<&str> = all().map(|source| source.machine.as_str()).collect();
    if programs.len() > 1 || machines.len() > 1 {
        warnings.push(format!(
            "These folders are of {} programs and {} machines: compare figures of different folders with care.",
            programs.len(),
            machines.len()
        ));
    }
    for experiment in study.experiments.iter().chain(&study.dictionaries) {
        let failed = experiment.trials.iter().filter(|trial| !trial.completed()).count();
        if failed > 0 {
            let of = experiment.trials.len();
            warnings.push(format!("{}: {failed} of {of} trials did not complete.", experiment.name));
        }
        let inexact = experiment.trials.iter().filter(|trial| {
            trial.captures.iter().any(|row| row.source == "capture" && row.exact == Some(false))
        });
        let inexact = inexact.count();
        if inexact > 0 {
            warnings.push(format!(
                "{}: packets were counted with offloads on in {inexact} trials; those counts lack headers.",
                experiment.name
            ));
        }
        let invalid = experiment
            .trials
            .iter()
            .filter(|trial| !trial.valid && trial.captures.iter().any(|row| row.source == "capture"));
        let invalid = invalid.count();
        if invalid > 0 {
            warnings.push(format!(
                "{}: the packet counts of {invalid} trials are not valid and are left out.",
                experiment.name
            ));
        }
    }
    warnings
}
