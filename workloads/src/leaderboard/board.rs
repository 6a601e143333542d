//! The board itself: who may stand on it, votes as commands, and standings. Pure.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::keyvalue::machine::Machine;
use crate::keyvalue::message::{Change, Command};

/// Longest name of a player, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 64;
/// Longest idempotency key, in bytes.
pub const MAX_KEY_BYTES: usize = 128;
/// Most players of a board: every request for the standings sorts all of them.
pub const MAX_PLAYERS: usize = 10_000;

/// A player's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// From 1. Players with as many votes share a place, and the next one is left out.
    pub rank: u64,
    /// Their name.
    pub player: String,
    /// Their votes.
    pub votes: u64,
}

/// Why a vote cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A player without a name.
    #[error("the player's name is empty")]
    EmptyName,
    /// A name over its limit.
    #[error("the player's name has {0} bytes, the limit is {MAX_NAME_BYTES}")]
    LongName(usize),
    /// A name that cannot be shown.
    #[error("the player's name has a control character")]
    ControlCharacter,
    /// An idempotency key that is none.
    #[error("an Idempotency-Key has 1 to {MAX_KEY_BYTES} visible ASCII characters")]
    Key,
}

/// The command that counts one vote for `player`, once under `key`.
///
/// # Errors
/// [`Invalid`].
pub fn vote(player: &str, key: &str) -> Result<Command, Invalid> {
    if player.trim().is_empty() {
        return Err(Invalid::EmptyName);
    }
    if player.len() > MAX_NAME_BYTES {
        return Err(Invalid::LongName(player.len()));
    }
    if player.chars().any(char::is_control) {
        return Err(Invalid::ControlCharacter);
    }
    if key.is_empty() || key.len() > MAX_KEY_BYTES || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Invalid::Key);
    }
    Ok(Command::Once { key: key.to_owned(), change: Change::Add { key: player.to_owned(), by: 1 } })
}

/// Whether a vote for `player` would put one more on a board that is full.
#[must_use]
pub fn is_full_for(machine: &Machine, player: &str) -> bool {
    machine.len() >= MAX_PLAYERS && machine.get(player).is_none()
}

/// Every player with its votes, in the order of their names: no more than what has to be done while writes wait.
#[must_use]
pub fn players(machine: &Machine) -> Vec<(String, Bytes)> {
    machine.entries_after(None).map(|(player, value)| (player.clone(), value.clone())).collect()
}

/// The place of each of `players`: by votes, then by name.
#[must_use]
pub fn standings(players: Vec<(String, Bytes)>) -> Vec<Standing> {
    let votes = |value: &[u8]| std::str::from_utf8(value).ok()?.parse().ok();
    let mut all: Vec<Standing> = players
        .into_iter()
        .filter_map(|(player, value)| Some(Standing { rank: 0, votes: votes(&value)?, player }))
        .collect();
    // Entries come in the order of their names, which a stable sort keeps.
    all.sort_by_key(|standing| std::cmp::Reverse(standing.votes));
    let mut before = None;
    for (place, standing) in (1..).zip(&mut all) {
        standing.rank = match before {
            Some((rank, votes)) if votes == standing.votes => rank,
            _ => place,
        };
        before = Some((standing.rank, standing.votes));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn players_with_as_many_votes_share_a_place() {
        let mut machine = Machine::default();
        for (number, player) in ["cy", "ada", "bob", "ada", "bob", "dan"].iter().enumerate() {
            machine.apply(&vote(player, &number.to_string()).unwrap());
        }
        let places: Vec<(u64, String, u64)> = standings(players(&machine))
            .into_iter()
            .map(|Standing { rank, player, votes }| (rank, player, votes))
            .collect();
        let expected = [(1, "ada", 2), (1, "bob", 2), (3, "cy", 1), (3, "dan", 1)];
        assert_eq!(places, expected.map(|(rank, player, votes)| (rank, player.to_owned(), votes)));
        assert_eq!(standings(players(&Machine::default())), []);
    }

    #[test]
    fn a_full_board_takes_votes_for_those_who_stand_on_it_only() {
        let mut machine = Machine::default();
        let mut vote_for = |number: usize| {
            machine.apply(&vote(&format!("player-{number}"), &number.to_string()).unwrap());
            (is_full_for(&machine, "player-0"), is_full_for(&machine, "somebody"))
        };
        let last = (0..MAX_PLAYERS - 1).map(&mut vote_for).last();
        assert_eq!(last, Some((false, false)));
        assert_eq!(vote_for(MAX_PLAYERS - 1), (false, true));
    }

    #[test]
    fn a_name_or_a_key_that_is_none_is_refused() {
        for (player, key, expected) in [
            ("", "k", Invalid::EmptyName),
            (" \t", "k", Invalid::EmptyName),
            (&"é".repeat(33), "k", Invalid::LongName(66)),
            ("a\nb", "k", Invalid::ControlCharacter),
            ("a", "", Invalid::Key),
            ("a", "k k", Invalid::Key),
            ("a", &"k".repeat(MAX_KEY_BYTES + 1), Invalid::Key),
        ] {
            assert_eq!(vote(player, key), Err(expected), "{player:?} {key:?}");
        }
        assert!(vote(&"x".repeat(MAX_NAME_BYTES), &"k".repeat(MAX_KEY_BYTES)).is_ok());
    }
}
