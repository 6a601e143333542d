//! The dictionary and its sessions: a pure function of the commands applied, so the same on every node.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::message::{Change, Command, Effect, Origin, Refused, SessionId};
use super::once::Marks;

/// Sessions kept open. Beyond that the one whose last write is the oldest is closed, and its client is told so: a write of
/// a forgotten session is refused, never applied twice.
pub const MAX_SESSIONS: usize = 4096;

/// A client's last write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    serial: u64,
    effect: Effect,
    used_at: u64,
}

/// The state after some commands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    entries: BTreeMap<String, Bytes>,
    bytes: u64,
    sessions: BTreeMap<SessionId, Session>,
    index: u64,
    marks: Marks,
}

impl Machine {
    /// Commands applied.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Bytes of keys and values.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Bytes> {
        self.entries.get(key)
    }

    /// Whether its counts are those of its entries, and can be counted on from: for one that was read.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        let bytes: u64 = self.entries.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
        self.bytes == bytes && self.index <= u64::MAX / 2
    }

    /// Entries in the order of their keys, after `after`.
    pub fn entries_after<'a>(&'a self, after: Option<&str>) -> impl Iterator<Item = (&'a String, &'a Bytes)> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.to_owned()));
        self.entries.range((from, Bound::Unbounded))
    }

    /// Applies a command; returns what it did.
    pub fn apply(&mut self, command: &Command) -> Effect {
        self.index += 1;
        match command {
            Command::OpenSession => self.open(),
            Command::Change { origin: None, change } => self.change(change),
            Command::Change { origin: Some(origin), change } => self.once(*origin, change),
            Command::Once { key, change } => self.marks.look_up(key, change).unwrap_or_else(|| {
                let effect = self.change(change);
                self.marks.keep(key, change, effect);
                effect
            }),
        }
    }

    fn open(&mut self) -> Effect {
        if self.sessions.len() >= MAX_SESSIONS {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.used_at).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                self.sessions.remove(&oldest);
            }
        }
        let id = SessionId(self.index);
        self.sessions.insert(id, Session { serial: 0, effect: Effect::Opened(id), used_at: self.index });
        Effect::Opened(id)
    }

    fn once(&mut self, origin: Origin, change: &Change) -> Effect {
        match self.sessions.get(&origin.session) {
            None => return Effect::Refused(Refused::UnknownSession),
            Some(session) if session.serial == origin.serial => return session.effect,
            Some(session) if session.serial > origin.serial => return Effect::Refused(Refused::Stale),
            Some(_) => {}
        }
        let effect = self.change(change);
        self.sessions.insert(origin.session, Session { serial: origin.serial, effect, used_at: self.index });
        effect
    }

    fn change(&mut self, change: &Change) -> Effect {
        match change {
            Change::Set { key, value } => Effect::Done { existed: self.set(key, value.clone()) },
            Change::Delete { key } => {
                let before = self.entries.remove(key);
                self.bytes -= before.as_ref().map_or(0, |value| (key.len() + value.len()) as u64);
                Effect::Done { existed: before.is_some() }
            }
            Change::Add { key, by } => self.add(key, *by),
        }
    }

    fn set(&mut self, key: &str, value: Bytes) -> bool {
        self.bytes += (key.len() + value.len()) as u64;
        let before = self.entries.insert(key.to_owned(), value);
        self.bytes -= before.as_ref().map_or(0, |value| (key.len() + value.len()) as u64);
        before.is_some()
    }

    fn add(&mut self, key: &str, by: i64) -> Effect {
        let before = match self.entries.get(key) {
            None => 0,
            Some(value) => match std::str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok()) {
                Some(number) => number,
                None => return Effect::Refused(Refused::NotANumber),
            },
        };
        let Some(sum) = before.checked_add(by) else { return Effect::Refused(Refused::Overflow) };
        self.set(key, sum.to_string().into());
        Effect::Sum(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(origin: Option<Origin>, by: i64) -> Command {
        Command::Change { origin, change: Change::Add { key: "n".into(), by } }
    }

    fn opened(machine: &mut Machine) -> SessionId {
        match machine.apply(&Command::OpenSession) {
            Effect::Opened(session) => session,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_repeated_write_is_applied_once_and_answered_alike() {
        let mut machine = Machine::default();
        let session = opened(&mut machine);
        let origin = |serial| Some(Origin { session, serial });
        for _ in 0..3 {
            assert_eq!(machine.apply(&add(origin(1), 5)), Effect::Sum(5));
        }
        assert_eq!(machine.apply(&add(origin(2), 1)), Effect::Sum(6));
        assert_eq!(machine.apply(&add(origin(1), 5)), Effect::Refused(Refused::Stale));
        for sum in [7, 8] {
            assert_eq!(
                machine.apply(&add(None, 1)),
                Effect::Sum(sum),
                "without an origin it counts every time"
            );
        }
    }

    #[test]
    fn a_forgotten_session_is_refused() {
        let mut machine = Machine::default();
        let (unused, used) = (opened(&mut machine), opened(&mut machine));
        assert_eq!(machine.apply(&add(Some(Origin { session: used, serial: 1 }), 1)), Effect::Sum(1));
        for _ in 1..MAX_SESSIONS {
            opened(&mut machine);
        }
        let write = |session| add(Some(Origin { session, serial: 2 }), 1);
        assert_eq!(machine.apply(&write(unused)), Effect::Refused(Refused::UnknownSession));
        assert_eq!(machine.apply(&write(used)), Effect::Sum(2));
    }

    #[test]
    fn entries_are_counted_and_come_in_order() {
        let mut machine = Machine::default();
        let mut change = |change| machine.apply(&Command::Change { origin: None, change });
        let set = |key: &str, value: &str| Change::Set { key: key.into(), value: value.to_owned().into() };
        assert_eq!(change(set("b", "12")), Effect::Done { existed: false });
        assert_eq!(change(set("a", "1")), Effect::Done { existed: false });
        assert_eq!(change(set("b", "3")), Effect::Done { existed: true });
        assert_eq!(change(set("text", "x")), Effect::Done { existed: false });
        assert_eq!(change(Change::Add { key: "text".into(), by: 1 }), Effect::Refused(Refused::NotANumber));
        assert_eq!(change(set("most", &i64::MAX.to_string())), Effect::Done { existed: false });
        assert_eq!(change(Change::Add { key: "most".into(), by: 1 }), Effect::Refused(Refused::Overflow));
        assert_eq!(change(Change::Delete { key: "most".into() }), Effect::Done { existed: true });
        assert_eq!(change(Change::Delete { key: "none".into() }), Effect::Done { existed: false });
        assert_eq!((machine.len(), machine.bytes()), (3, 2 + 2 + 5));
        let keys: Vec<&str> = machine.entries_after(Some("a")).map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["b", "text"]);
    }
}
