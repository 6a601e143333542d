//! Horizontal bars of parts, one after the other, with a legend of the parts: drawn for recoveries and for bytes alike.

use maud::{Markup, html};

use crate::report::draw::{Area, Key, Scale, WIDTH, bar, legend, text, x_axis};

/// From a bar to the one below.
const ROW: f64 = 30.0;
/// Space for the names of bars.
const NAMES: f64 = 170.0;

/// A part of a bar.
#[derive(Debug)]
pub(super) struct Part {
    /// Its colour.
    pub class: String,
    /// What it says when it is pointed at.
    pub hint: String,
    /// In the axis's unit.
    pub length: f64,
}

/// A bar.
#[derive(Debug)]
pub(super) struct Bar {
    /// Its name.
    pub label: String,
    /// Its parts, from the left.
    pub parts: Vec<Part>,
    /// What is said at its end.
    pub end: String,
}

impl Bar {
    fn length(&self) -> f64 {
        self.parts.iter().map(|part| part.length).sum()
    }
}

/// Draws `bars` over an axis called `name`, and says how high that is.
pub(super) fn stacked(bars: &[Bar], keys: &[(Key, String)], name: &str) -> (Markup, f64) {
    let (legend, top) = legend(keys, 0.0);
    let area = Area { x: NAMES, y: top + 6.0, w: WIDTH - NAMES - 70.0, h: ROW * bars.len() as f64 };
    let longest = bars.iter().map(Bar::length).fold(0.0, f64::max);
    let x = Scale::from_zero(longest, area.x, area.right());
    let drawn = html! {
        (legend)
        (x_axis(area, &x, name))
        @for (index, drawn) in bars.iter().enumerate() { (one(drawn, area.y + ROW * index as f64, &x)) }
    };
    (drawn, area.bottom() + 40.0)
}

fn one(drawn: &Bar, y: f64, x: &Scale) -> Markup {
    let ends = drawn.parts.iter().scan(0.0, |end, part| {
        *end += part.length;
        Some((part, *end - part.length, *end))
    });
    html! {
        (text(NAMES - 10.0, y + 19.0, "end", "label", &drawn.label))
        @for (part, from, until) in ends {
            (bar(
                Area { x: x.at(from), y: y + 5.0, w: x.at(until) - x.at(from), h: ROW - 10.0 },
                &format!("seam {}", part.class),
                &part.hint,
            ))
        }
        (text(x.at(drawn.length()) + 6.0, y + 19.0, "start", "small", &drawn.end))
    }
}
