//! Questions to a host before a run, over the standard streams of `harness probe`, as JSON lines: what its clocks show, and
//! what it has of what a node needs. Knows no ssh.

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::facts::{Facts, Needs};

/// Longest line, in bytes.
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// A question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Question {
    /// What do your clocks show?
    Clocks,
    /// What do you have of this?
    Facts(Needs),
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// What the clocks show.
    Clocks {
        /// CLOCK_MONOTONIC.
        monotonic_ns: u64,
        /// Time since 1970 in UTC.
        utc_ns: u64,
    },
    /// What is there.
    Facts(Box<Facts>),
}

/// Answers until the stream ends.
///
/// # Errors
/// If the streams cannot be used, or a line is no question.
pub fn serve(mut questions: impl BufRead, mut answers: impl Write) -> std::io::Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        if std::io::Read::take(&mut questions, MAX_LINE_BYTES).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_str(&line)? {
            Question::Clocks => {
                Answer::Clocks { monotonic_ns: clock::monotonic_ns(), utc_ns: clock::utc_ns() }
            }
            Question::Facts(needs) => Answer::Facts(Box::new(Facts::of(&needs))),
        };
        serde_json::to_writer(&mut answers, &answer)?;
        answers.write_all(b"\n")?;
        answers.flush()?;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn questions_are_answered_in_order_until_the_stream_ends() {
        let needs = Needs { address: Ipv4Addr::LOCALHOST, ports: vec![], data: None, piece: None };
        let ask = |question: &Question| serde_json::to_string(question).unwrap() + "\n";
        let text = ask(&Question::Clocks) + &ask(&Question::Facts(needs)) + &ask(&Question::Clocks);
        let mut answers = Vec::new();
        serve(text.as_bytes(), &mut answers).unwrap();
        let answers: Vec<Answer> = String::from_utf8(answers)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let [
            Answer::Clocks { monotonic_ns: first, .. },
            Answer::Facts(facts),
            Answer::Clocks { monotonic_ns: last, .. },
        ] = answers.as_slice()
        else {
            panic!("{answers:?}");
        };
        assert!(first <= last);
        assert_eq!(facts.version, env!("CARGO_PKG_VERSION"));
        assert!(serve(&b"hello\n"[..], Vec::new()).is_err());
    }
}
