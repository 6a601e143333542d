//! Were all votes counted, and each once? Pure.

use std::collections::BTreeMap;

use super::board::Standing;

/// What voters know of one player.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cast {
    /// Votes that were acknowledged.
    pub acknowledged: u64,
    /// Votes of unknown outcome.
    pub unknown: u64,
}

/// What is wrong with a board.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Votes that were acknowledged are not on it.
    #[error(
        "{lost} acknowledged votes for {player} are lost: {acknowledged} were acknowledged, the board has {votes}"
    )]
    Lost {
        /// Whose.
        player: String,
        /// How many.
        lost: u64,
        /// Votes that were acknowledged.
        acknowledged: u64,
        /// Votes on the board.
        votes: u64,
    },
    /// There are more votes on it than were cast.
    #[error(
        "{more} votes for {player} were counted that nobody cast: {cast} were cast, the board has {votes}"
    )]
    Doubled {
        /// Whose.
        player: String,
        /// How many.
        more: u64,
        /// Votes that were cast.
        cast: u64,
        /// Votes on the board.
        votes: u64,
    },
}

/// Compares a board with what was cast. Where no outcome is unknown every number has to be the same.
///
/// # Errors
/// The first player whose votes are wrong.
pub fn check(board: &[Standing], cast: &BTreeMap<String, Cast>) -> Result<(), Wrong> {
    let counted: BTreeMap<&str, u64> =
        board.iter().map(|standing| (standing.player.as_str(), standing.votes)).collect();
    let players = cast.keys().map(String::as_str).chain(counted.keys().copied());
    for player in players {
        let votes = counted.get(player).copied().unwrap_or(0);
        let Cast { acknowledged, unknown } = cast.get(player).copied().unwrap_or_default();
        if votes < acknowledged {
            let lost = acknowledged - votes;
            return Err(Wrong::Lost { player: player.to_owned(), lost, acknowledged, votes });
        }
        let cast = acknowledged + unknown;
        if votes > cast {
            return Err(Wrong::Doubled { player: player.to_owned(), more: votes - cast, cast, votes });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_doubled_and_invented_votes_are_found() {
        let cast: BTreeMap<String, Cast> = [
            ("ada".to_owned(), Cast { acknowledged: 3, unknown: 1 }),
            ("bob".to_owned(), Cast { acknowledged: 1, unknown: 0 }),
        ]
        .into();
        let board = |ada, bob, more: Option<&str>| {
            let standing = |player: &str, votes| Standing { rank: 1, player: player.into(), votes };
            let mut board = vec![standing("ada", ada), standing("bob", bob)];
            board.extend(more.map(|player| standing(player, 1)));
            check(&board, &cast).map_err(|wrong| wrong.to_string())
        };
        assert_eq!((board(3, 1, None), board(4, 1, None)), (Ok(()), Ok(())));
        assert!(board(2, 1, None).unwrap_err().starts_with("1 acknowledged votes for ada are lost"));
        assert!(board(3, 0, None).unwrap_err().starts_with("1 acknowledged votes for bob are lost"));
        assert!(board(5, 1, None).unwrap_err().starts_with("1 votes for ada were counted that nobody cast"));
        assert!(board(3, 1, Some("eve")).unwrap_err().contains("for eve"));
    }
}
