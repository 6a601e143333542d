//! What people write: inventories, experiments, links, options.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::OnceLock;

use harness::cli::{
    PartitionArg, PolicyArg, Size, Thousandths, Window, run_options, shell_line, shell_words,
};
use harness::experiment::cells;
use harness::experiment::definition::{Definition, Known};
use harness::fault::{Change, Fault};
use harness::kv::prompt::Action;
use harness::link::{self, Link};
use harness::place::inventory::{self, Host, MAX_HOSTS};
use harness::plan::MetricsAt;
use harness::report::{Document, cell};
use harness::units::{Bare, exact_ms, nanoseconds, parse_duration};
use serde_json::{Map, Value, json};

use super::selected;

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

pub(crate) fn inventory_ini(bytes: &[u8]) -> bool {
    text(bytes).is_some_and(|text| inventory(text, false))
}

pub(crate) fn inventory_yaml(bytes: &[u8]) -> bool {
    text(bytes).is_some_and(|text| inventory(text, true))
}

/// What is accepted says the same when it is written as YAML, of which JSON is a part.
fn inventory(text: &str, is_yaml: bool) -> bool {
    let hosts = match inventory::parse(text, is_yaml, None) {
        Ok(hosts) => hosts,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    assert!((1..=MAX_HOSTS).contains(&hosts.len()));
    let written: Map<String, Value> = hosts.iter().map(|host| (host.name.clone(), variables(host))).collect();
    let written = json!({ "all": { "hosts": written } }).to_string();
    // YAML wants more characters escaped than JSON does.
    let escaped = |c: char| match u32::from(c) {
        0x20..=0x7e => c.to_string(),
        code @ ..=0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    };
    let written: String = written.chars().map(escaped).collect();
    let mut read =
        inventory::parse(&written, true, None).unwrap_or_else(|error| panic!("{written}: {error}"));
    let place = |host: &Host| hosts.iter().position(|known| known.name == host.name);
    // JSON's maps here have an order of their own.
    read.sort_by_key(place);
    assert_eq!(read, hosts, "{written}");
    true
}

fn variables(host: &Host) -> Value {
    let quoted =
        |word: &String| word.split('\'').map(|part| format!("'{part}'")).collect::<Vec<_>>().join("\"'\"");
    let given = [
        ("ansible_host", Some(host.destination.clone())),
        ("ansible_user", host.user.clone()),
        ("ansible_port", host.port.map(|port| port.to_string())),
        ("harness_address", Some(host.address.to_string())),
        ("harness_interface", host.interface.clone()),
        ("harness_program", Some(host.program.clone())),
        ("harness_cpu_mb_per_s", host.cpu_mb_per_s.map(|speed| speed.to_string())),
        ("harness_memory_bytes", host.memory_bytes.map(|bytes| bytes.to_string())),
        ("harness_bandwidth_bits_per_s", host.bandwidth_bits_per_s.map(|bits| bits.to_string())),
        ("harness_mains_power", host.mains_power.map(|mains| if mains { "yes" } else { "no" }.to_owned())),
        (
            "harness_power_off",
            host.power_off.as_ref().map(|words| words.iter().map(quoted).collect::<Vec<_>>().join(" ")),
        ),
    ];
    given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), Value::String(value?)))).collect()
}

/// Cells that are made of an experiment here at most.
const MAX_CELLS: u64 = 200;

pub(crate) fn experiment(bytes: &[u8]) -> bool {
    static KNOWN: OnceLock<Vec<Known>> = OnceLock::new();
    let known = KNOWN.get_or_init(run_options);
    let Some(text) = text(bytes) else { return false };
    let definition = match Definition::parse(text, "file.toml", known) {
        Ok(definition) => definition,
        Err(error) => {
            assert!(error.to_string().starts_with("file.toml: "), "{error}");
            return false;
        }
    };
    let written = toml::to_string(&definition).unwrap_or_else(|error| panic!("{definition:?}: {error}"));
    let read = Definition::parse(&written, "written.toml", known);
    let read = read.unwrap_or_else(|error| panic!("{error}: {written}"));
    // Numbers that are none differ from themselves.
    assert_eq!(toml::to_string(&read).ok().as_ref(), Some(&written));
    if let Some(count) = cells::count(&definition).filter(|count| *count <= MAX_CELLS) {
        let cells = cells::cells(&definition);
        assert!(cells.len() as u64 <= count && !cells.is_empty());
        for cell in &cells {
            let words = cells::words(cell, known);
            assert_eq!(shell_words(&shell_line(&words)).as_ref(), Some(&words));
            let _ = cell::of_command(&shell_line(&words));
        }
    }
    true
}

pub(crate) fn link(bytes: &[u8]) -> bool {
    let Some(text) = text(bytes) else { return false };
    let link = match link::parse("x.toml", text) {
        Ok(link) => link,
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with("--link x.toml: ") && error.lines().count() == 1, "{error:?}");
            return false;
        }
    };
    let written = toml::to_string(&link).expect("a link is TOML");
    assert_eq!(link::parse("written.toml", &written).as_ref(), Ok::<&Link, _>(&link), "{written}");
    let _ = (link.rate_bits_per_s(), link.impairment(), link.netem_arguments());
    true
}

/// Which kind of words, and the words.
pub(crate) fn words(bytes: &[u8]) -> bool {
    let Some((selector, rest)) = selected(bytes) else { return false };
    let Some(text) = text(rest) else { return false };
    match selector {
        b'f' => same::<Fault>(text),
        b'c' => same::<Change>(text),
        b'p' => same::<PartitionArg>(text),
        b'o' => same::<PolicyArg>(text),
        b'w' => same::<Window>(text),
        b's' => same::<Size>(text),
        b't' => same::<Thousandths>(text),
        b'm' => same::<MetricsAt>(text),
        b'd' => parse_duration(text, Bare::Seconds).is_ok_and(|duration| {
            let written = exact_ms(nanoseconds(duration));
            assert_eq!(parse_duration(&written, Bare::Seconds), Ok(duration), "{written}");
            true
        }),
        b'k' => Action::parse(text).is_ok_and(|action| action.is_some_and(|action| action.check().is_ok())),
        b'l' => {
            let _ = cell::of_command(text);
            shell_words(text).is_some_and(|words| {
                assert_eq!(shell_words(&shell_line(&words)), Some(words));
                true
            })
        }
        b'r' => document(text),
        _ => false,
    }
}

/// What is read is written in a way that is read alike.
fn same<T: FromStr<Err = String> + Display>(text: &str) -> bool {
    let value: T = match text.parse() {
        Ok(value) => value,
        Err(reason) => {
            assert!(!reason.is_empty());
            return false;
        }
    };
    let written = value.to_string();
    let read: T = written.parse().unwrap_or_else(|reason| panic!("{text:?} is written {written}: {reason}"));
    assert_eq!(read.to_string(), written);
    true
}

/// A README with a report's section, which another section leaves as it is.
fn document(text: &str) -> bool {
    let Ok(document) = Document::parse(text) else { return false };
    let Ok(spliced) = document.with(&document.dirs, "a table\n") else { return false };
    let read = Document::parse(&spliced).unwrap_or_else(|reason| panic!("{spliced:?} {reason}"));
    assert_eq!(read.section, "a table\n");
    assert_eq!(read.with(&read.dirs, &read.section), Ok(spliced));
    true
}
