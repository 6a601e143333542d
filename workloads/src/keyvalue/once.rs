//! Which changes were applied under which idempotency key, and what they did. A pure function of the changes applied, so the
//! same on every node.
//!
//! Sessions number the writes of a client that lives as long as it writes. A key is for those of whom nobody knows how long they
//! live: whoever sends a request over HTTP gives it a key of its own, and the same again when it is repeated.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::message::{Change, Effect, Refused};
use replication::transport::head;

/// Keys remembered. Beyond that the oldest is forgotten: a change that is repeated later than so many others is applied
/// again.
pub const MAX_MARKS: usize = 16_384;

/// What a key was used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// Of the change.
    digest: [u8; 16],
    effect: Effect,
}

/// Keys with what they were used for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    marks: BTreeMap<String, Mark>,
    /// The oldest first.
    order: VecDeque<String>,
}

fn digest(change: &Change) -> [u8; 16] {
    let mut digest = [0; 16];
    digest.copy_from_slice(&blake3::hash(&head::encode(change)).as_bytes()[..16]);
    digest
}

impl Marks {
    /// What `change` did under `key`; none: it was not applied yet.
    #[must_use]
    pub fn look_up(&self, key: &str, change: &Change) -> Option<Effect> {
        let mark = self.marks.get(key)?;
        Some(if mark.digest == digest(change) { mark.effect } else { Effect::Refused(Refused::KeyReused) })
    }

    /// Remembers what `change` did under a new `key`.
    pub fn keep(&mut self, key: &str, change: &Change, effect: Effect) {
        if self.order.len() >= MAX_MARKS
            && let Some(oldest) = self.order.pop_front()
        {
            self.marks.remove(&oldest);
        }
        self.marks.insert(key.to_owned(), Mark { digest: digest(change), effect });
        self.order.push_back(key.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::Machine;
    use super::super::message::Command;
    use super::*;

    fn vote(key: &str, player: &str) -> Command {
        Command::Once { key: key.into(), change: Change::Add { key: player.into(), by: 1 } }
    }

    #[test]
    fn a_change_is_applied_once_under_its_key() {
        let mut machine = Machine::default();
        for _ in 0..3 {
            assert_eq!(machine.apply(&vote("a", "ada")), Effect::Sum(1));
        }
        assert_eq!(machine.apply(&vote("b", "ada")), Effect::Sum(2));
        assert_eq!(machine.apply(&vote("a", "ada")), Effect::Sum(1), "as it was answered first");
        assert_eq!(machine.apply(&vote("a", "bob")), Effect::Refused(Refused::KeyReused));
        assert_eq!((machine.get("ada").map(|votes| &votes[..]), machine.get("bob")), (Some(&b"2"[..]), None));
    }

    #[test]
    fn the_oldest_key_is_forgotten_first() {
        let mut machine = Machine::default();
        for key in 0..=MAX_MARKS {
            machine.apply(&vote(&key.to_string(), "ada"));
        }
        let counted = MAX_MARKS as i64 + 1;
        assert_eq!(machine.apply(&vote("1", "ada")), Effect::Sum(2), "remembered");
        assert_eq!(machine.apply(&vote("0", "ada")), Effect::Sum(counted + 1), "forgotten, so counted again");
        assert_eq!(machine.apply(&vote("1", "ada")), Effect::Sum(counted + 2), "forgotten for the other");
    }
}
