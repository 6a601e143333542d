//! Figures of the place where differences are largest: at the greatest number of what trials vary, say of workers.

use maud::Markup;

use super::{command, id, sweep, titled};
use crate::report::cell::{Facet, Series, facets, say, swept};
use crate::report::draw::Figure;
use crate::report::study::{Cell, Experiment, Trial};

/// The series of a facet at the greatest number of what is swept that they share, and both in words.
#[derive(Debug)]
pub struct Largest<'a> {
    /// What the facet's trials have in common; empty if there is but one facet.
    pub facet: String,
    /// What they are at; empty if nothing is swept.
    pub at: String,
    /// The series, each with its trials there.
    pub series: Vec<Series<'a>>,
}

/// What is peculiar to a figure.
pub(super) struct Content {
    /// What it shows, in a sentence.
    pub says: String,
    /// How it was measured.
    pub how: String,
    /// The drawing and its height.
    pub drawn: (Markup, f64),
}

/// A figure of each facet of `trials`, with what `content` makes of its series.
pub(super) fn figures(
    experiment: &Experiment,
    (kind, title): (&str, &str),
    trials: &[&Trial],
    content: impl Fn(&[Series<'_>]) -> Content,
) -> Vec<Figure> {
    let found = largest(trials);
    let figures = found.iter().enumerate().map(|(index, place)| {
        let Content { says, how, drawn: (body, height) } = content(&place.series);
        let title = titled(title, &[&place.at, &place.facet]);
        Figure {
            id: id(experiment, kind, index, found.len()),
            title,
            says,
            how,
            command: command(experiment),
            height,
            body,
        }
    });
    figures.collect()
}

/// The facets of `trials`, each at its greatest. If some facets vary the swept factor, the others are left out: they would show
/// the same once more for each of their own numbers.
#[must_use]
pub fn largest<'a>(trials: &[&'a Trial]) -> Vec<Largest<'a>> {
    let factor = sweep(trials);
    let mut facets = facets(trials, factor.as_deref().unwrap_or("workers"));
    let Some(factor) = factor else {
        let whole =
            |facet: Facet<'a>| Largest { facet: facet.label, at: String::new(), series: facet.series };
        return facets.into_iter().map(whole).collect();
    };
    let sweeps = |facet: &Facet<'_>| {
        let trials: Vec<&Trial> = facet.series.iter().flat_map(|series| series.trials.clone()).collect();
        swept(&trials, &[&factor]).is_some()
    };
    if facets.iter().any(sweeps) {
        facets.retain(sweeps);
    }
    facets.into_iter().map(|facet| at_greatest(facet, &factor)).collect()
}

fn at_greatest<'a>(facet: Facet<'a>, factor: &str) -> Largest<'a> {
    let greatest = |series: &Series<'_>| {
        series.trials.iter().filter_map(|trial| trial.cell.number(factor)).fold(0.0, f64::max)
    };
    let shared = facet.series.iter().map(greatest).fold(f64::INFINITY, f64::min);
    let mut series = facet.series;
    for series in &mut series {
        series.trials.retain(|trial| {
            trial.cell.number(factor).is_none_or(|number| (number - shared).abs() < f64::EPSILON)
        });
    }
    series.retain(|series| !series.trials.is_empty());
    let cell = Cell([(factor.to_owned(), shared.to_string())].into());
    Largest { facet: facet.label, at: say(&cell, &[&factor.to_owned()]), series }
}
