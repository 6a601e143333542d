//! Links between nodes: named profiles and files. Pure, apart from [`load`].
//!
//! ```toml
//! rate_mbit_per_s = 20   # of each node in each direction, or of the air that all share; none: no limit
//! shared_air = false     # whether all nodes share one medium
//! queue_ms = 50          # how long a packet may wait for the rate before it is dropped
//! delay_ms = 2           # one way, of every datagram
//! jitter_ms = 1          # at most this much longer, uniform; the order is kept
//! loss = 0.001           # share of datagrams that are lost
//! reorder = 0.0          # share that overtakes those in delay
//! netem = false          # whether the kernel's netem does the last four instead of the nodes
//! ```
//!
//! The rate is the kernel's work, so it needs the placement `netns`. The rest is done by the nodes, to what they send,
//! by a generator seeded from the trial: it works everywhere, and a capture does not see what was lost. With `netem` the
//! kernel does it, to every packet, unseeded; that needs `netns`, too, and a kernel that has it.

use std::path::Path;
use std::time::Duration;

use replication::transport::quic::impair::Impairment;
use serde::{Deserialize, Serialize};

use crate::exit::Usage;

/// Profiles that come with the program.
const BUILT_IN: [(&str, &str); 2] = [
    ("lan", include_str!("../../profiles/lan.toml")),
    ("wifi-pi3", include_str!("../../profiles/wifi-pi3.toml")),
];

/// Longest delay, jitter or queue, in milliseconds.
const MAX_MS: f64 = 10_000.0;
/// Packets that may be in delay at a node at once.
const NETEM_QUEUE_PACKETS: u32 = 16_384;
/// Largest rate: more than any single host sends.
const MAX_MBIT_PER_S: f64 = 100_000.0;

/// A link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Link {
    /// Rate in Mbit/s at Ethernet level.
    pub rate_mbit_per_s: Option<f64>,
    /// Whether all nodes share the rate.
    pub shared_air: bool,
    /// How long a packet may wait for the rate, in milliseconds.
    pub queue_ms: u32,
    /// One-way delay in milliseconds.
    pub delay_ms: f64,
    /// Largest addition to it, in milliseconds.
    pub jitter_ms: f64,
    /// Share of datagrams that are lost.
    pub loss: f64,
    /// Share of datagrams that overtake.
    pub reorder: f64,
    /// Whether delay, jitter, loss and reordering are the work of the kernel's netem.
    pub netem: bool,
}

impl Default for Link {
    /// No limit and no impairment.
    fn default() -> Self {
        Self {
            rate_mbit_per_s: None,
            shared_air: false,
            queue_ms: 50,
            delay_ms: 0.0,
            jitter_ms: 0.0,
            loss: 0.0,
            reorder: 0.0,
            netem: false,
        }
    }
}

impl Link {
    /// The rate in bit/s.
    #[must_use]
    pub fn rate_bits_per_s(&self) -> Option<u64> {
        self.rate_mbit_per_s.map(|rate| (rate * 1e6).round() as u64)
    }

    /// What nodes do to the datagrams they send; none if they leave them alone.
    #[must_use]
    pub fn impairment(&self) -> Option<Impairment> {
        if self.netem { None } else { self.wanted_impairment() }
    }

    /// What the kernel's netem does to the packets that leave a node, as its arguments; none if it has nothing to do.
    #[must_use]
    pub fn netem_arguments(&self) -> Option<String> {
        self.wanted_impairment().filter(|_| self.netem)?;
        let us = |ms: f64| (ms * 1000.0).round() as u64;
        // netem's jitter goes both ways, ours is an addition.
        let (delay, jitter) = (us(self.delay_ms + self.jitter_ms / 2.0), us(self.jitter_ms / 2.0));
        let mut words = format!("limit {NETEM_QUEUE_PACKETS} delay {delay}us {jitter}us");
        for (name, share) in [("loss", self.loss), ("reorder", self.reorder)] {
            if share > 0.0 {
                words += &format!(" {name} {}%", share * 100.0);
            }
        }
        Some(words)
    }

    fn wanted_impairment(&self) -> Option<Impairment> {
        let milliseconds = |value: f64| Duration::from_secs_f64(value / 1000.0);
        let impairment = Impairment {
            delay: milliseconds(self.delay_ms),
            jitter: milliseconds(self.jitter_ms),
            loss: self.loss,
            reorder: self.reorder,
        };
        (impairment != Impairment::default()).then_some(impairment)
    }

    /// The first value that makes no sense, in words.
    fn fault(&self) -> Option<String> {
        if let Some(rate) = self.rate_mbit_per_s
            && !(rate > 0.001 && rate <= MAX_MBIT_PER_S)
        {
            return Some(format!("rate_mbit_per_s {rate} is outside of 0.001 to {MAX_MBIT_PER_S}"));
        }
        if self.shared_air && self.rate_mbit_per_s.is_none() {
            return Some("shared_air without a rate_mbit_per_s has no effect".into());
        }
        let spans = [
            ("queue_ms", f64::from(self.queue_ms)),
            ("delay_ms", self.delay_ms),
            ("jitter_ms", self.jitter_ms),
        ];
        if let Some((name, value)) = spans.into_iter().find(|(_, value)| !(0.0..=MAX_MS).contains(value)) {
            return Some(format!("{name} {value} is outside of 0 to {MAX_MS}"));
        }
        if self.queue_ms == 0 {
            return Some("queue_ms 0 would drop everything".into());
        }
        let shares = [("loss", self.loss), ("reorder", self.reorder)];
        if let Some((name, value)) = shares.into_iter().find(|(_, value)| !(0.0..1.0).contains(value)) {
            return Some(format!("{name} {value} is no share: use 0 to below 1"));
        }
        if self.netem && self.wanted_impairment().is_none() {
            return Some("netem without a delay_ms, jitter_ms, loss or reorder has nothing to do".into());
        }
        (self.reorder > 0.0 && self.delay_ms == 0.0)
            .then(|| "reorder needs a delay_ms that can be overtaken".into())
    }
}

/// Reads a profile's text; `name` is for errors.
///
/// # Errors
/// What is wrong, with its line.
pub fn parse(name: &str, text: &str) -> Result<Link, Usage> {
    let link: Link = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        let wrong = error.message().replace('\n', " ");
        Usage::option("--link", name, format_args!("line {line}: {wrong}"), "see docs/RESULTS.md, link")
    })?;
    match link.fault() {
        None => Ok(link),
        Some(wrong) => Err(Usage::option("--link", name, wrong, "correct the file")),
    }
}

/// The profile that `name` names: a built-in one, a TOML file, or `KEY=VALUE,...` with the keys of such a file.
///
/// # Errors
/// A name that means nothing, or a file that cannot be used.
pub fn load(name: &str) -> Result<Link, Usage> {
    if let Some((name, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
        return parse(name, text);
    }
    if name.contains('=') {
        return parse(name, &name.replace(',', "\n"));
    }
    let names = BUILT_IN.map(|(name, _)| name).join(", ");
    let remedy = format!("use {names}, a .toml file or KEY=VALUE,...");
    if Path::new(name).extension().is_none_or(|extension| extension != "toml") {
        return Err(Usage::option("--link", name, "no link profile has this name", remedy));
    }
    match std::fs::read_to_string(name) {
        Ok(text) => parse(name, &text),
        Err(error) => Err(Usage::option("--link", name, format_args!("cannot be read ({error})"), remedy)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A link from TOML.
    pub(crate) fn link(text: &str) -> Link {
        parse("test", text).unwrap()
    }

    #[test]
    fn built_in_profiles_are_valid() {
        for (name, _) in BUILT_IN {
            let link = load(name).unwrap();
            assert!(link.rate_bits_per_s().is_some(), "{name}");
        }
        assert!(load("wifi-pi3").unwrap().shared_air);
        assert_eq!(link(""), Link::default());
        assert_eq!(load("delay_ms=25,loss=0.01").unwrap(), link("delay_ms = 25\nloss = 0.01"));
        assert!(load("delay=25").unwrap_err().to_string().contains("unknown field `delay`"));
        assert_eq!(Link::default().impairment(), None);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            ("delay_ms = 1\ndelai_ms = 2\n", "--link x.toml: line 2: unknown field `delai_ms`"),
            ("\n\nloss = \"no\"", "--link x.toml: line 3: invalid type"),
            ("loss = ", "--link x.toml: line 1:"),
            ("loss = 1.0", "loss 1 is no share"),
            ("loss = nan", "loss NaN is no share"),
            ("rate_mbit_per_s = 0", "rate_mbit_per_s 0 is outside"),
            ("delay_ms = -1", "delay_ms -1 is outside"),
            ("shared_air = true", "has no effect"),
            ("reorder = 0.1", "needs a delay_ms"),
            ("netem = true", "has nothing to do"),
        ] {
            let message = parse("x.toml", text).unwrap_err().to_string();
            assert!(message.contains(expected) && message.lines().count() == 1, "{text:?}: {message}");
        }
    }

    #[test]
    fn netem_does_what_nodes_would_do_and_then_they_do_not() {
        let text = "delay_ms = 2\njitter_ms = 1\nloss = 0.01\nreorder = 0.25";
        assert_eq!(link(text).netem_arguments(), None);
        let netem = link(&format!("{text}\nnetem = true"));
        assert_eq!(netem.impairment(), None);
        let expected = "limit 16384 delay 2500us 500us loss 1% reorder 25%";
        assert_eq!(netem.netem_arguments().as_deref(), Some(expected));
    }

    #[test]
    fn a_name_that_means_nothing_is_refused() {
        let message = load("wlan").unwrap_err().to_string();
        assert_eq!(
            message,
            "--link wlan: no link profile has this name; use lan, wifi-pi3, a .toml file or KEY=VALUE,..."
        );
        assert!(load("/nowhere/x.toml").unwrap_err().to_string().contains("cannot be read"));
    }
    proptest::proptest! {
        #[test]
        fn any_text_is_a_link_or_refused_in_a_line(
            text in "((rate_mbit_per_s|shared_air|delay_ms|loss|reorder|netem|[a-z]{3})( = |=)(-?[0-9.]{1,4}|true|nan|\"x\")\n){0,5}",
        ) {
            match parse("x.toml", &text) {
                Ok(link) => proptest::prop_assert_eq!(parse("x", &toml::to_string(&link).unwrap()).unwrap(), link),
                Err(error) => proptest::prop_assert_eq!(error.to_string().lines().count(), 1),
            }
        }
    }
}
