//! Members that come or go on purpose: how that is written. `join@WHEN` or `leave@WHO,WHEN`, where WHEN and WHO are those of
//! faults, for example `join@round:3` or `leave@worker,round:6`. Who the next one to join is, the run decides.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{When, Who};

/// One change of the set of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The next node joins.
    Join {
        /// When.
        when: When,
    },
    /// A node leaves.
    Leave {
        /// Which.
        who: Who,
        /// When.
        when: When,
    },
}

impl Change {
    /// When it is due.
    #[must_use]
    pub const fn when(self) -> When {
        match self {
            Self::Join { when } | Self::Leave { when, .. } => when,
        }
    }

    /// Who leaves; none: nobody.
    #[must_use]
    pub const fn leaver(self) -> Option<Who> {
        match self {
            Self::Join { .. } => None,
            Self::Leave { who, .. } => Some(who),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join { when } => write!(f, "join@{when}"),
            Self::Leave { who, when } => write!(f, "leave@{who},{when}"),
        }
    }
}

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write join@WHEN or leave@WHO,WHEN, for example join@round:2 or leave@worker,round:4";
        let (what, rest) = text.split_once('@').ok_or(form)?;
        match (what, rest.split_once(',')) {
            ("join", None) => Ok(Self::Join { when: rest.parse()? }),
            ("leave", Some((who, when))) => {
                let who: Who = who.parse()?;
                if matches!(who, Who::Majority | Who::Minority | Who::All) {
                    return Err("nodes leave one by one: use aggregator, worker, random or node:ID".into());
                }
                Ok(Self::Leave { who, when: when.parse()? })
            }
            _ => Err(form.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_and_written_alike() {
        for text in ["join@round:3", "join@random:2", "leave@worker,round:6", "leave@node:7,voters-changed"] {
            assert_eq!(text.parse::<Change>().unwrap().to_string(), text);
        }
        for (text, expected) in [
            ("", "write join@WHEN"),
            ("join", "write join@WHEN"),
            ("join@worker,round:1", "write join@WHEN"),
            ("leave@round:1", "write join@WHEN"),
            ("merge@round:1", "write join@WHEN"),
            ("join@round:0", "unknown moment"),
            ("leave@boss,round:1", "unknown node"),
            ("leave@all,round:1", "one by one"),
        ] {
            let error = text.parse::<Change>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
