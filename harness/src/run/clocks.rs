//! The clocks of nodes on other hosts, asked again and again over the control streams, and what moments there are on the
//! controller's clock.
//!
//! [`ClockBook`] is pure: questions and answers in, offsets out. An answer was given at some moment between question and
//! arrival, so the quickest exchange tells most; but clocks drift, so an old one tells less with time.

use std::collections::{BTreeMap, VecDeque};

use replication::NodeId;

use super::Controller;
use crate::clock::{self, Exchange, Offset};
use crate::control::ToNode;
use crate::place::Placement;
use crate::record::{ClockOffset, ClockRow};

/// Exchanges before a node is told to start, and each time after that.
const FIRST_EXCHANGES: u32 = 8;
const EXCHANGES: u32 = 4;
/// How often clocks are asked.
pub(super) const INTERVAL_NS: u64 = 2_000_000_000;
/// Exchanges of a node that are kept: two minutes of them.
const KEPT: usize = 256;
/// How far clocks may drift apart: 100 ns in a millisecond, more than crystals do.
const DRIFT_PER_NS: u64 = 10_000;

/// What was asked of a node and is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    request_id: u64,
    at_ns: u64,
    /// Questions that follow.
    left: u32,
    /// Whether the node waits for the order to start.
    starts: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Clock {
    exchanges: VecDeque<Exchange>,
    asked: Option<Asked>,
    /// When the last answer came.
    answered_ns: u64,
    /// Largest uncertainty of a moment that was translated.
    worst_ns: u64,
}

/// What follows from an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Ask again.
    Ask { left: u32, starts: bool },
    /// That was the last of these; the node may wait for the order to start.
    Over { starts: bool },
}

/// What is known of the nodes' clocks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ClockBook {
    nodes: BTreeMap<NodeId, Clock>,
}

impl ClockBook {
    /// Takes note of a question at `now_ns`, after which `left` follow.
    fn asked(&mut self, node: NodeId, request_id: u64, now_ns: u64, left: u32, starts: bool) {
        self.nodes.entry(node).or_default().asked = Some(Asked { request_id, at_ns: now_ns, left, starts });
    }

    /// Takes note of the answer to a question; none if nobody asked.
    fn answered(&mut self, node: NodeId, request_id: u64, shown_ns: u64, now_ns: u64) -> Option<Next> {
        let clock = self.nodes.get_mut(&node)?;
        let asked = clock.asked.take_if(|asked| asked.request_id == request_id)?;
        if clock.exchanges.len() == KEPT {
            clock.exchanges.pop_front();
        }
        clock.exchanges.push_back(Exchange { asked_ns: asked.at_ns, shown_ns, answered_ns: now_ns });
        clock.answered_ns = now_ns;
        let starts = asked.starts;
        Some(asked.left.checked_sub(1).map_or(Next::Over { starts }, |left| Next::Ask { left, starts }))
    }

    /// Whether `node` is to be asked at `now_ns`, and then whether it waits for the order to start: a question that is not
    /// answered is repeated.
    fn due(&self, node: NodeId, now_ns: u64) -> Option<bool> {
        let clock = self.nodes.get(&node)?;
        let last_ns = clock.asked.map_or(clock.answered_ns, |asked| asked.at_ns);
        (now_ns.saturating_sub(last_ns) >= INTERVAL_NS).then(|| clock.asked.is_some_and(|asked| asked.starts))
    }

    /// How far the clock of `node` was ahead when it showed `shown_ns`.
    fn offset(&self, node: NodeId, shown_ns: u64) -> Option<Offset> {
        let exchanges = self.nodes.get(&node)?.exchanges.iter();
        let offsets = exchanges.filter_map(|exchange| {
            let Offset { offset_ns, uncertainty_ns } = clock::offset(&[*exchange])?;
            let age_ns = shown_ns.abs_diff(exchange.shown_ns);
            Some(Offset { offset_ns, uncertainty_ns: uncertainty_ns + age_ns / DRIFT_PER_NS })
        });
        offsets.min_by_key(|offset| offset.uncertainty_ns)
    }

    /// The moment on our clock when that of `node` showed `shown_ns`; the same, where nothing is known of it.
    pub(super) fn here(&mut self, node: NodeId, shown_ns: u64) -> u64 {
        let Some(Offset { offset_ns, uncertainty_ns }) = self.offset(node, shown_ns) else { return shown_ns };
        if let Some(clock) = self.nodes.get_mut(&node) {
            clock.worst_ns = clock.worst_ns.max(uncertainty_ns);
        }
        shown_ns.saturating_add_signed(offset_ns.saturating_neg())
    }

    /// How wrong a moment of each node may be at most.
    pub(super) fn uncertainties_ns(&self) -> BTreeMap<NodeId, u64> {
        self.nodes.iter().map(|(node, clock)| (*node, clock.worst_ns)).collect()
    }
}

impl<P: Placement> Controller<P> {
    /// Asks a node that has said hello for the time, several times, before it is told to start.
    pub(super) fn compare_clock_first(&mut self, node: NodeId) {
        self.ask_clock(node, FIRST_EXCHANGES - 1, true);
    }

    /// Asks for the time again where it was not asked for a while.
    pub(super) fn compare_clocks(&mut self) {
        let now_ns = clock::monotonic_ns();
        for node in self.cluster.running() {
            if let Some(starts) = self.clocks.due(node, now_ns) {
                self.ask_clock(node, EXCHANGES - 1, starts);
            }
        }
    }

    fn ask_clock(&mut self, node: NodeId, left: u32, starts: bool) {
        self.requests += 1;
        self.clocks.asked(node, self.requests, clock::monotonic_ns(), left, starts);
        self.links.send(node, ToNode::ClockProbe { request_id: self.requests });
    }

    /// Takes an answer.
    pub(super) fn clock(&mut self, node: NodeId, request_id: u64, shown_ns: u64) -> anyhow::Result<()> {
        let now_ns = clock::monotonic_ns();
        let starts = match self.clocks.answered(node, request_id, shown_ns, now_ns) {
            None => return Ok(()),
            Some(Next::Ask { left, starts }) => {
                self.ask_clock(node, left, starts);
                return Ok(());
            }
            Some(Next::Over { starts }) => starts,
        };
        let Some(Offset { offset_ns, uncertainty_ns }) = self.clocks.offset(node, shown_ns) else {
            return Ok(());
        };
        if !self.placement.shares_clock() {
            self.recorder.clock(ClockRow { node: node.0, at_ns: now_ns, offset_ns, uncertainty_ns })?;
        }
        if starts {
            self.order_start(node);
        }
        if starts || self.placement.shares_clock() {
            self.manifest.clocks.push(ClockOffset { node, offset_ns, uncertainty_ns });
        }
        Ok(())
    }

    /// Asks a node that shares our clock once, while it starts.
    pub(super) fn probe_clock(&mut self, node: NodeId) {
        self.ask_clock(node, 0, false);
    }

    /// The moment on our clock when that of `node` showed `shown_ns`.
    pub(super) fn here(&mut self, node: NodeId, shown_ns: u64) -> u64 {
        if self.placement.shares_clock() { shown_ns } else { self.clocks.here(node, shown_ns) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(3);

    /// A clock that is a day ahead, asked at `asked_ns` and answering after half of `span_ns`.
    fn exchange(book: &mut ClockBook, asked_ns: u64, span_ns: u64) -> Option<Next> {
        book.asked(NODE, asked_ns, asked_ns, 1, false);
        book.answered(NODE, asked_ns, asked_ns + span_ns / 2 + DAY_NS, asked_ns + span_ns)
    }

    const DAY_NS: u64 = 86_400_000_000_000;

    #[test]
    fn moments_of_a_wrong_clock_are_ours_within_the_uncertainty() {
        let mut book = ClockBook::default();
        assert_eq!(book.here(NODE, 5), 5, "nothing is known of it");
        exchange(&mut book, 1000, 400_000);
        exchange(&mut book, 2000, 20_000);
        exchange(&mut book, 3000, 600_000);
        assert_eq!(book.here(NODE, DAY_NS + 12_000), 12_000);
        assert_eq!(book.uncertainties_ns()[&NODE], 10_000, "half of the quickest");
        // A minute later the quickest exchange tells less than a fresh one.
        let minute_ns = 60_000_000_000;
        exchange(&mut book, minute_ns, 600_000);
        assert_eq!(book.here(NODE, DAY_NS + minute_ns), minute_ns);
        assert_eq!(book.uncertainties_ns()[&NODE], 300_000 + 300_000 / DRIFT_PER_NS);
    }

    #[test]
    fn a_burst_asks_until_nothing_is_left_and_an_old_question_is_repeated() {
        let mut book = ClockBook::default();
        assert_eq!(book.due(NODE, 5), None, "it has not said hello");
        book.asked(NODE, 1, 100, 1, true);
        assert_eq!(book.answered(NODE, 7, 100, 110), None, "another question's answer");
        assert_eq!(book.answered(NODE, 1, 100, 110), Some(Next::Ask { left: 0, starts: true }));
        assert_eq!(book.answered(NODE, 1, 100, 110), None, "answered already");
        book.asked(NODE, 2, 120, 0, true);
        assert_eq!((book.due(NODE, 130), book.due(NODE, 120 + INTERVAL_NS)), (None, Some(true)));
        assert_eq!(book.answered(NODE, 2, 100, 130), Some(Next::Over { starts: true }));
        assert_eq!((book.due(NODE, 140), book.due(NODE, 130 + INTERVAL_NS)), (None, Some(false)));
    }
}
