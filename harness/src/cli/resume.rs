//! The options of a run that continues another one: those of that one, save what does not change the job.

use clap::parser::ValueSource;
use clap::{ArgAction, CommandFactory as _, Parser as _};

use super::{Cli, Command, RunArgs};
use crate::exit::Usage;

/// Options that may differ from those of the run that is continued.
const FREE: [&str; 6] = ["resume", "out", "json", "quiet", "fault", "store"];

/// An option on a command line, and its values; none for a flag.
type Given = (String, Vec<String>);

impl RunArgs {
    /// The options of the run that the command `repeat` describes, with those of `words` (the command line that these
    /// options were read from) that may differ. Faults are those of `words`: the others have had their time.
    ///
    /// # Errors
    /// An option that differs and must not, with its remedy; a `repeat` that this program does not understand.
    pub fn continuing(&self, repeat: &[String], words: &[String]) -> Result<Self, Usage> {
        let base = parse(repeat).ok_or_else(|| {
            let wrong = "its command is not understood: another version of this program wrote it";
            Usage::option("--resume", self.resume_in_words(), wrong, "use the program that wrote it")
        })?;
        let before = base.to_trial(0)?;
        let given = explicit(words);
        for (name, values) in given.iter().filter(|(name, _)| !FREE.contains(&name.as_str())) {
            // What does not even go with the other options differs too.
            let same = parse(&replaced(repeat, name, values)).and_then(|args| args.to_trial(0).ok());
            if same.as_ref() != Some(&before) {
                let had = value_in(repeat, name).unwrap_or("another value");
                let wrong = format!("the run that is continued has {had}");
                let remedy = "leave it out, or begin a new run";
                return Err(Usage::option(&format!("--{name}"), values.join(" "), wrong, remedy));
            }
        }
        let out = given.iter().any(|(name, _)| name == "out");
        Ok(Self {
            resume: self.resume.clone(),
            out: if out { self.out.clone() } else { base.out.clone() },
            json: self.json,
            quiet: self.quiet,
            fault: self.fault.clone(),
            store_dir: self.store_dir.clone(),
            ..base
        })
    }

    fn resume_in_words(&self) -> String {
        self.resume.as_ref().map(|dir| dir.display().to_string()).unwrap_or_default()
    }
}

fn parse(words: &[String]) -> Option<RunArgs> {
    match Cli::try_parse_from(words).ok()?.command {
        Command::Run(args) => Some(*args),
        _ => None,
    }
}

/// Options that were given on a command line of `run`, as opposed to their defaults.
fn explicit(words: &[String]) -> Vec<Given> {
    let command = Cli::command();
    let Ok(matches) = command.clone().try_get_matches_from(words) else { return Vec::new() };
    let (Some(run), Some(matches)) = (command.find_subcommand("run"), matches.subcommand_matches("run"))
    else {
        return Vec::new();
    };
    let given = |argument: &&clap::Arg| {
        matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine)
    };
    let named = run.get_arguments().filter(given).filter_map(|argument| {
        let raw = matches.get_raw(argument.get_id().as_str()).into_iter().flatten();
        let values = raw.map(|value| value.to_string_lossy().into_owned());
        let flag = matches!(argument.get_action(), ArgAction::SetTrue);
        Some((argument.get_long()?.to_owned(), if flag { Vec::new() } else { values.collect() }))
    });
    named.collect()
}

/// The command `repeat` with other values of an option. Every option in it is spelled `--name value`, or `--flag`.
fn replaced(repeat: &[String], name: &str, values: &[String]) -> Vec<String> {
    let option = format!("--{name}");
    let mut words = Vec::new();
    let mut dropping = false;
    for word in repeat {
        dropping = if word.starts_with("--") { *word == option } else { dropping };
        if !dropping {
            words.push(word.clone());
        }
    }
    match values {
        [] => words.push(option),
        values => words.extend(values.iter().flat_map(|value| [option.clone(), value.clone()])),
    }
    words
}

fn value_in<'a>(repeat: &'a [String], name: &str) -> Option<&'a str> {
    let option = format!("--{name}");
    let at = repeat.iter().position(|word| *word == option)?;
    repeat.get(at + 1).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn continued(given: &str) -> Result<RunArgs, Usage> {
        let first = parse(&words(
            "harness run --nodes 4 --rounds 9 --durability disk --heartbeat 90 --resend --fault kill@worker,round:2 --out a",
        ));
        let given = words(format!("harness run --resume old {given}").trim_end());
        parse(&given).unwrap().continuing(&first.unwrap().repeat_command(7), &given)
    }

    #[test]
    fn everything_is_as_it_was_but_for_the_faults() {
        let args = continued("").unwrap();
        assert_eq!((args.nodes(), args.rounds, args.seed, args.resend), (4, 9, Some(7), true));
        assert_eq!((args.fault.len(), args.out.to_str()), (0, Some("a")));
        let args =
            continued("--out b --json --nodes 4 --heartbeat 0.09s --fault kill@worker,round:8").unwrap();
        assert_eq!((args.fault.len(), args.out.to_str(), args.json), (1, Some("b"), true));
    }

    #[test]
    fn what_differs_is_named_with_both_values() {
        for (given, expected) in [
            ("--rounds 10", "--rounds 10: the run that is continued has 9; leave it out, or begin a new run"),
            ("--durability memory", "--durability memory: the run that is continued has disk;"),
            ("--seed 8", "--seed 8: the run that is continued has 7;"),
            ("--aggregator-trains", "--aggregator-trains: the run"),
            ("--backend raft-subset", "--backend raft-subset: the run that is continued has raft;"),
            ("--backend gossip", "--backend gossip: the run that is continued has raft;"),
        ] {
            let message = continued(given).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{given}: {message}");
        }
    }

    #[test]
    fn a_command_of_another_program_is_not_continued() {
        let given = words("harness run --resume old");
        let message = parse(&given).unwrap().continuing(&words("harness run --colour red"), &given);
        assert!(message.unwrap_err().to_string().starts_with("--resume old: its command is not understood"));
    }
}
