//! What an experiment file says. Its options are those of `harness run`, by their long names; what they mean is not known
//! here, only which there are and how many values each takes.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::exit::Usage;

/// Options that an experiment decides itself, and why a file cannot.
const RESERVED: [(&str, &str); 6] = [
    ("seed", "each trial's seed comes of the experiment's `seed`"),
    ("out", "it is an option of `harness experiment run`"),
    ("json", "trials print nothing"),
    ("quiet", "trials print nothing"),
    ("resume", "a trial is a run of its own"),
    ("store", "each trial has stores of its own"),
];

/// Keys of an experiment file.
const KEYS: [&str; 7] = ["name", "about", "seed", "repetitions", "fixed", "factors", "cases"];

/// An experiment: the options that stay, and those that vary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Definition {
    /// Its name, which its results' folder gets: letters, digits, `-` and `_`.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub about: String,
    /// Every trial's seed is derived from it.
    #[serde(default = "one")]
    pub seed: u64,
    /// How often each cell is run.
    #[serde(default = "one")]
    pub repetitions: u64,
    /// Options of every trial.
    #[serde(default)]
    pub fixed: BTreeMap<String, Level>,
    /// Options that vary independently of each other.
    #[serde(default)]
    pub factors: BTreeMap<String, Levels>,
    /// Options that belong together: of every group one case at a time. A list in a case is varied within it.
    #[serde(default)]
    pub cases: BTreeMap<String, Vec<BTreeMap<String, Levels>>>,
}

const fn one() -> u64 {
    1
}

/// One value of an option.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// A flag, given or not.
    Flag(bool),
    /// A whole number.
    Integer(i64),
    /// Another number.
    Float(f64),
    /// Anything else.
    Text(String),
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(given) => write!(f, "{given}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// What an option is in one cell: a value, or all values of an option that is given repeatedly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Level {
    /// One value.
    One(Scalar),
    /// The values of a repeatable option, in order; possibly none.
    All(Vec<Scalar>),
}

impl Level {
    /// The values as written on a command line.
    #[must_use]
    pub fn values(&self) -> Vec<String> {
        match self {
            Self::One(value) => vec![value.to_string()],
            Self::All(values) => values.iter().map(Scalar::to_string).collect(),
        }
    }
}

/// The values separated by `; `.
impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.values().join("; "))
    }
}

/// What an option is in turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Levels {
    /// It does not vary.
    One(Scalar),
    /// One after the other.
    Each(Vec<Level>),
}

impl Levels {
    /// The levels in turn.
    #[must_use]
    pub fn list(&self) -> Vec<Level> {
        match self {
            Self::One(value) => vec![Level::One(value.clone())],
            Self::Each(levels) => levels.clone(),
        }
    }
}

/// How often an option may be given on a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arity {
    /// Without a value.
    Flag,
    /// Once, with a value.
    Once,
    /// With a value each time.
    Repeatable,
}

/// An option that a file may set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its long name.
    pub name: String,
    /// How often it may be given.
    pub arity: Arity,
    /// Whether it is about the store, or about where nodes run and what is between them: cells that are compared share all
    /// else, their seed included.
    pub of_store_or_network: bool,
}

impl Definition {
    /// Reads a file's text. `origin` names it in errors; `known` are the options there are.
    ///
    /// # Errors
    /// [`Usage`] with the first thing that is wrong: a key that does not exist, with the nearest one that does; a value of
    /// the wrong kind; an option given in two places.
    pub fn parse(text: &str, origin: &str, known: &[Known]) -> Result<Self, Usage> {
        let wrong = |error: &dyn fmt::Display| Usage(format!("{origin}: {}", error.to_string().trim_end()));
        let table: toml::Table = toml::from_str(text).map_err(|error| wrong(&error))?;
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(wrong(&unknown(key, "key", KEYS.into_iter())));
        }
        let definition: Self = table.try_into().map_err(|error| wrong(&error))?;
        definition.check(known).map_err(|error| wrong(&error))?;
        Ok(definition)
    }

    /// Sets an option in all cells, in place of what the file says of it.
    pub fn set(&mut self, option: &str, level: Level) {
        self.factors.remove(option);
        for case in self.cases.values_mut().flatten() {
            case.remove(option);
        }
        self.fixed.insert(option.to_owned(), level);
    }

    /// Removes every case that gives `option` this one `value`; returns whether there was one.
    pub fn leave_out(&mut self, option: &str, value: &str) -> bool {
        let has = |case: &BTreeMap<String, Levels>| matches!(case.get(option), Some(Levels::One(Scalar::Text(text))) if text == value);
        let mut found = false;
        for cases in self.cases.values_mut() {
            let before = cases.len();
            cases.retain(|case| !has(case));
            found |= cases.len() < before;
        }
        found
    }

    /// Whether the file says something of an option.
    #[must_use]
    pub fn mentions(&self, option: &str) -> bool {
        let in_a_case = self.cases.values().flatten().any(|case| case.contains_key(option));
        self.fixed.contains_key(option) || self.factors.contains_key(option) || in_a_case
    }

    /// Options that may differ between cells, in alphabetical order.
    #[must_use]
    pub fn varied(&self) -> Vec<&str> {
        let in_cases = self.cases.values().flatten().flat_map(BTreeMap::keys);
        let mut names: Vec<&str> = self.factors.keys().chain(in_cases).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Checks names and shapes.
    ///
    /// # Errors
    /// What is wrong, without the file's name.
    pub fn check(&self, known: &[Known]) -> Result<(), Usage> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(allowed) {
            let wrong = "not a name for a folder";
            return Err(Usage::option("name", &self.name, wrong, "use letters, digits, - and _"));
        }
        if self.repetitions == 0 {
            return Err(Usage::option("repetitions", 0, "nothing would be run", "use 1 or more"));
        }
        for (option, level) in &self.fixed {
            check_level(option, level, known)?;
        }
        for (option, levels) in self.factors.iter().chain(self.cases.values().flatten().flatten()) {
            let levels = levels.list();
            if levels.is_empty() {
                return Err(Usage(format!("{option}: an empty list; name a value, or leave it out")));
            }
            for level in &levels {
                check_level(option, level, known)?;
            }
        }
        self.check_places()
    }

    /// Every option has one place.
    fn check_places(&self) -> Result<(), Usage> {
        let mut places: Vec<(&str, String)> = Vec::new();
        places.extend(self.fixed.keys().map(|option| (option.as_str(), "[fixed]".to_owned())));
        places.extend(self.factors.keys().map(|option| (option.as_str(), "[factors]".to_owned())));
        for (group, cases) in &self.cases {
            if cases.is_empty() {
                return Err(Usage(format!("cases.{group}: it has no case; add one, or leave it out")));
            }
            let mut options: Vec<&str> = cases.iter().flatten().map(|(option, _)| option.as_str()).collect();
            options.sort_unstable();
            options.dedup();
            places.extend(options.into_iter().map(|option| (option, format!("[[cases.{group}]]"))));
        }
        places.sort_unstable();
        match places.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            None => Ok(()),
            Some(pair) => Err(Usage(format!(
                "{}: given in {} and in {}; give it in one of them",
                pair[0].0, pair[0].1, pair[1].1
            ))),
        }
    }
}

fn check_level(option: &str, level: &Level, known: &[Known]) -> Result<(), Usage> {
    if let Some((_, why)) = RESERVED.iter().find(|(name, _)| *name == option) {
        return Err(Usage(format!("{option}: not for an experiment, because {why}; leave it out")));
    }
    let Some(found) = known.iter().find(|known| known.name == option) else {
        let names = known.iter().map(|known| known.name.as_str());
        let names = names.filter(|name| RESERVED.iter().all(|(reserved, _)| reserved != name));
        return Err(unknown(option, "option of `harness run`", names));
    };
    let remedy = match (found.arity, level) {
        (Arity::Flag, Level::One(Scalar::Flag(_))) => return Ok(()),
        (Arity::Flag, _) => "it is a flag: use true or false",
        (_, Level::One(Scalar::Flag(_))) => "it takes a value, not true or false",
        (Arity::Once, Level::All(_)) => "it can be given once: one value, not a list of them",
        _ => return Ok(()),
    };
    Err(Usage(format!("{option} = {level}: {remedy}")))
}

/// A name that does not exist, with the nearest one that does.
fn unknown<'a>(name: &str, what: &str, valid: impl Iterator<Item = &'a str>) -> Usage {
    let distance = |valid: &&str| strsim::damerau_levenshtein(name, valid);
    let nearest = valid.min_by_key(distance).unwrap_or_default();
    Usage(format!("{name}: no {what} of this name; did you mean {nearest}?"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::run_options;

    pub(in crate::experiment) fn parse(text: &str) -> Result<Definition, Usage> {
        Definition::parse(text, "file.toml", &run_options())
    }

    fn refused(text: &str) -> String {
        parse(&format!("name = \"x\"\n{text}")).unwrap_err().to_string()
    }

    #[test]
    fn a_definition_is_read_back_as_written() {
        let text = r#"
            name = "both"
            seed = 5
            repetitions = 2
            [fixed]
            lr = 0.01
            no-reuse = true
            fault = ["kill@aggregator,round:1", "stop@worker,round:2"]
            [factors]
            nodes = [3, 5]
            [[cases.store]]
            backend = "raft"
            payload = ["inline", "digest"]
            [[cases.store]]
            backend = "gossip"
        "#;
        let definition = parse(text).unwrap();
        assert_eq!(definition.varied(), ["backend", "nodes", "payload"]);
        assert!(
            definition.mentions("payload") && definition.mentions("lr") && !definition.mentions("rounds")
        );
        let written = toml::to_string(&definition).unwrap();
        assert_eq!(parse(&written).unwrap(), definition);
    }

    #[test]
    fn what_is_set_replaces_what_the_file_says() {
        let mut definition = parse("name = \"x\"\n[factors]\nnodes = [3, 5]\n").unwrap();
        definition.set("nodes", Level::One(Scalar::Text("4".into())));
        assert_eq!(definition.varied(), [""; 0]);
        assert_eq!(definition.fixed["nodes"].values(), ["4"]);
    }

    #[test]
    fn cases_are_left_out_by_what_they_say() {
        let text = "name = \"x\"\n[[cases.store]]\npeer = \"etcd\"\n[[cases.store]]\nbackend = \"raft\"\n";
        let mut definition = parse(text).unwrap();
        assert!(!definition.leave_out("peer", "other") && definition.leave_out("peer", "etcd"));
        assert_eq!(definition.varied(), ["backend"]);
    }

    #[test]
    fn unknown_keys_are_named_with_the_nearest_valid_one() {
        for (text, expected) in [
            ("repetition = 3", "file.toml: repetition: no key of this name; did you mean repetitions?"),
            (
                "[factors]\nnode = [3]",
                "file.toml: node: no option of `harness run` of this name; did you mean nodes?",
            ),
            (
                "[fixed]\npayloads = \"inline\"",
                "file.toml: payloads: no option of `harness run` of this name; did you mean payload?",
            ),
            (
                "[[cases.store]]\nbackends = \"raft\"",
                "file.toml: backends: no option of `harness run` of this name; did you mean backend",
            ),
        ] {
            let message = refused(text);
            assert!(message.starts_with(expected), "{message}");
        }
    }

    #[test]
    fn wrong_shapes_and_places_are_refused_with_the_remedy() {
        for (text, expected) in [
            ("[fixed]\nseed = 5", "seed: not for an experiment"),
            ("[fixed]\nno-reuse = 1", "no-reuse = 1: it is a flag"),
            ("[fixed]\nnodes = true", "nodes = true: it takes a value"),
            ("[fixed]\nnodes = [3, 4]", "nodes = 3; 4: it can be given once"),
            ("[factors]\nnodes = []", "nodes: an empty list"),
            ("[fixed]\nnodes = 3\n[factors]\nnodes = [4]", "nodes: given in [factors] and in [fixed]"),
            ("repetitions = 0", "repetitions 0: nothing would be run"),
            ("seed = \"a\"", "invalid type"),
            ("[factors", "TOML parse error"),
        ] {
            let message = refused(text);
            assert!(message.starts_with("file.toml: ") && message.contains(expected), "{message}");
        }
        assert!(parse("name = \"a/b\"").unwrap_err().to_string().contains("not a name for a folder"));
    }
    proptest::proptest! {
        #[test]
        fn any_text_is_a_definition_or_refused(
            lines in "((\\[(fixed|factors)\\]|\\[\\[cases.a\\]\\]|(nodes|lr|fault|no-reuse|seed|x)=(3|0.5|true|\"a\"|\\[1,2\\]|\\[\\]))\n){0,8}",
        ) {
            match parse(&format!("name = \"x\"\n{lines}")) {
                Ok(definition) => {
                    proptest::prop_assert_eq!(parse(&toml::to_string(&definition).unwrap()).unwrap(), definition);
                }
                Err(error) => proptest::prop_assert!(error.to_string().starts_with("file.toml: "), "{}", error),
            }
        }
    }
}
