//! What figures are drawn with: scales, axes, legends, marks, as SVG. It knows lengths and classes, not what is measured.
//!
//! Colours are classes of `figure.css`, so that the same figure is light or dark in a page and light in a file.

use maud::{Markup, html};

/// Width of every figure, in the units of its view box (CSS pixels at full size).
pub const WIDTH: f64 = 760.0;
/// Around a figure that is a file of its own.
const MARGIN: f64 = 12.0;
/// Height of a line of text.
pub const LINE: f64 = 17.0;
/// What a letter of the figures' text is wide, on average.
const LETTER: f64 = 6.6;

/// A finished figure.
#[derive(Debug, Clone)]
pub struct Figure {
    /// Its name, a part of file names.
    pub id: String,
    /// What it is about.
    pub title: String,
    /// What it shows, in a sentence with numbers.
    pub says: String,
    /// How it was measured and how it is drawn.
    pub how: String,
    /// The command that made its data.
    pub command: String,
    /// In units of the view box.
    pub height: f64,
    /// What is in the `svg` element.
    pub body: Markup,
}

impl Figure {
    /// The figure as an element of a page.
    #[must_use]
    pub fn inline(&self) -> Markup {
        self.svg(0.0, &html! {})
    }

    /// The figure as a file of its own, with a margin and light colours.
    #[must_use]
    pub fn file(&self) -> String {
        let head = html! {
            style { (maud::PreEscaped(include_str!("figure.css"))) }
            rect class="paper" x=(n(-MARGIN)) y=(n(-MARGIN))
                width=(n(WIDTH + 2.0 * MARGIN)) height=(n(self.height + 2.0 * MARGIN)) {}
        };
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n", self.svg(MARGIN, &head).into_string())
    }

    fn svg(&self, margin: f64, head: &Markup) -> Markup {
        let (width, height) = (n(WIDTH + 2.0 * margin), n(self.height + 2.0 * margin));
        html! {
            svg xmlns="http://www.w3.org/2000/svg" class="figure" role="img"
                viewBox={ (n(-margin)) " " (n(-margin)) " " (width) " " (height) } width=(width) height=(height) {
                title { (self.title) }
                desc { (self.says) }
                (head)
                (self.body)
            }
        }
    }
}

/// A coordinate or length: at most two decimals.
#[must_use]
pub fn n(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// About how wide a text is.
#[must_use]
pub fn text_width(text: &str) -> f64 {
    text.chars().count() as f64 * LETTER
}

/// Values to places on the page, along a straight line.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    lo: f64,
    hi: f64,
    from: f64,
    to: f64,
    log: bool,
}

impl Scale {
    /// From 0 to a round number not below `highest`.
    #[must_use]
    pub fn from_zero(highest: f64, from: f64, to: f64) -> Self {
        let highest = if highest > 0.0 { highest } else { 1.0 };
        let step = step(highest, 4.0);
        Self { lo: 0.0, hi: (highest / step - 1e-9).ceil() * step, from, to, log: false }
    }

    /// From `lo` to `hi` exactly.
    #[must_use]
    pub fn between(lo: f64, hi: f64, from: f64, to: f64) -> Self {
        Self { lo, hi: if hi > lo { hi } else { lo + 1.0 }, from, to, log: false }
    }

    /// From `lo` to `hi`, both above 0, each doubling the same length.
    #[must_use]
    pub fn logarithmic(lo: f64, hi: f64, from: f64, to: f64) -> Self {
        Self { log: true, ..Self::between(lo, hi, from, to) }
    }

    /// Where `value` is.
    #[must_use]
    pub fn at(&self, value: f64) -> f64 {
        let share = if self.log {
            (value / self.lo).ln() / (self.hi / self.lo).ln()
        } else {
            (value - self.lo) / (self.hi - self.lo)
        };
        self.from + share * (self.to - self.from)
    }

    /// Round values for the axis.
    #[must_use]
    pub fn ticks(&self) -> Vec<f64> {
        if self.log {
            let decades = self.lo.log10().floor() as i32..=self.hi.log10().ceil() as i32;
            let ticks = decades.map(|power| 10_f64.powi(power));
            return ticks.filter(|tick| (self.lo * 0.999..=self.hi * 1.001).contains(tick)).collect();
        }
        let step = step(self.hi - self.lo, 4.0);
        let first = (self.lo / step - 1e-9).ceil() as i64;
        let last = (self.hi / step + 1e-9).floor() as i64;
        (first..=last).map(|tick| tick as f64 * step).collect()
    }
}

/// A round step of which about `count` make `span`.
fn step(span: f64, count: f64) -> f64 {
    let raw = span / count;
    let power = 10_f64.powf(raw.log10().floor());
    let digit = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|digit| raw <= digit * power * 1.000_001);
    digit.unwrap_or(10.0) * power
}

/// A tick's number: as many decimals as its neighbours need.
#[must_use]
pub fn tick_label(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Where something is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    /// Left edge.
    pub x: f64,
    /// Upper edge.
    pub y: f64,
    /// Width.
    pub w: f64,
    /// Height.
    pub h: f64,
}

impl Area {
    /// The lower edge.
    #[must_use]
    pub fn bottom(&self) -> f64 {
        self.y + self.h
    }

    /// The right edge.
    #[must_use]
    pub fn right(&self) -> f64 {
        self.x + self.w
    }
}

/// A text; `anchor` is `start`, `middle` or `end`.
#[must_use]
pub fn text(x: f64, y: f64, anchor: &str, class: &str, words: &str) -> Markup {
    html! { text class=(class) x=(n(x)) y=(n(y)) text-anchor=(anchor) { (words) } }
}

/// A straight line.
#[must_use]
pub fn line(from: (f64, f64), to: (f64, f64), class: &str) -> Markup {
    html! { line class=(class) x1=(n(from.0)) y1=(n(from.1)) x2=(n(to.0)) y2=(n(to.1)) {} }
}

/// A filled box that says `hint` when it is pointed at.
#[must_use]
pub fn bar(area: Area, class: &str, hint: &str) -> Markup {
    html! {
        rect class=(class) x=(n(area.x)) y=(n(area.y)) width=(n(area.w.max(0.0))) height=(n(area.h.max(0.0))) {
            title { (hint) }
        }
    }
}

/// A line through points.
#[must_use]
pub fn path(points: &[(f64, f64)], class: &str) -> Markup {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{},{}", n(*x), n(*y))).collect();
    html! { polyline class=(class) points=(points.join(" ")) {} }
}

/// Horizontal grid lines with their values on the left, and the axis's name above it.
#[must_use]
pub fn y_axis(area: Area, scale: &Scale, name: &str) -> Markup {
    html! {
        @for tick in scale.ticks() {
            (line((area.x, scale.at(tick)), (area.right(), scale.at(tick)), if tick == 0.0 { "base" } else { "grid" }))
            (text(area.x - 7.0, scale.at(tick) + 4.0, "end", "tick", &tick_label(tick)))
        }
        (text(area.x - 28.0, area.y - 9.0, "start", "name", name))
    }
}

/// Vertical grid lines with their values below, and the axis's name.
#[must_use]
pub fn x_axis(area: Area, scale: &Scale, name: &str) -> Markup {
    html! {
        @for tick in scale.ticks() {
            (line((scale.at(tick), area.y), (scale.at(tick), area.bottom()), if tick == 0.0 { "base" } else { "grid" }))
            (text(scale.at(tick), area.bottom() + 16.0, "middle", "tick", &tick_label(tick)))
        }
        (text(area.right(), area.bottom() + 32.0, "end", "name", name))
    }
}

/// How a legend's entry looks.
#[derive(Debug, Clone)]
pub enum Key {
    /// A box of a class.
    Box(String),
    /// A line with a dot: classes of the line and of the dot.
    Line(String, String),
}

/// Entries in rows from `top` on, and the height that they take.
#[must_use]
pub fn legend(entries: &[(Key, String)], top: f64) -> (Markup, f64) {
    let (mut x, mut y, mut places) = (0.0, top, Vec::new());
    for (_, words) in entries {
        let width = 26.0 + text_width(words) + 16.0;
        if x > 0.0 && x + width > WIDTH {
            (x, y) = (0.0, y + LINE + 2.0);
        }
        places.push((x, y));
        x += width;
    }
    let drawn = html! {
        @for ((key, words), (x, y)) in entries.iter().zip(&places) {
            @match key {
                Key::Box(class) => (bar(Area { x: *x + 5.0, y: *y + 2.0, w: 12.0, h: 12.0 }, class, words)),
                Key::Line(stroke, dot) => {
                    (line((*x, *y + 8.0), (*x + 22.0, *y + 8.0), stroke))
                    circle class=(dot) cx=(n(*x + 11.0)) cy=(n(*y + 8.0)) r="3.5" {}
                }
            }
            (text(*x + 27.0, *y + 12.0, "start", "label", words))
        }
    };
    let height = if entries.is_empty() { 0.0 } else { y + LINE + 8.0 - top };
    (drawn, height)
}

/// Places for labels beside `wanted` heights (sorted or not) that are at least a line apart, in the order given.
#[must_use]
pub fn spread(wanted: &[f64], lo: f64, hi: f64) -> Vec<f64> {
    let gap = LINE - 3.0;
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    let mut places = wanted.to_vec();
    let mut last = lo - gap;
    for index in &order {
        places[*index] = places[*index].max(last + gap);
        last = places[*index];
    }
    let mut next = hi + gap;
    for index in order.iter().rev() {
        places[*index] = places[*index].min(next - gap);
        next = places[*index];
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_at_round_numbers() {
        let scale = Scale::from_zero(4.3, 100.0, 0.0);
        assert_eq!(scale.ticks(), [0.0, 2.0, 4.0, 6.0]);
        assert!((scale.at(3.0) - 50.0).abs() < 1e-9);
        assert_eq!(Scale::from_zero(0.0, 0.0, 1.0).ticks().last(), Some(&1.0));
        let log = Scale::logarithmic(0.5, 100.0, 0.0, 10.0);
        assert_eq!(log.ticks(), [1.0, 10.0, 100.0]);
        assert!((log.at(100.0) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn labels_are_kept_apart() {
        let places = spread(&[50.0, 51.0, 10.0], 0.0, 60.0);
        assert!((places[0] - places[1]).abs() >= LINE - 3.0 - 1e-9 && places[2] <= places[0], "{places:?}");
        assert!(places.iter().all(|place| *place <= 60.0), "{places:?}");
    }

    #[test]
    fn numbers_have_no_needless_digits() {
        assert_eq!([n(1.0), n(1.005_1), n(-0.0), n(-2.5)], ["1", "1.01", "0", "-2.5"]);
        assert_eq!([tick_label(0.25), tick_label(10.0), tick_label(0.0)], ["0.25", "10", "0"]);
    }
}
