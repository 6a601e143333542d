//! What documents say of the code.

use std::fs;
use std::path::{Path, PathBuf};

/// The source of a test that a document names, and its name.
fn source(named: &[&str]) -> (PathBuf, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (binary, rest) = named.split_first().unwrap();
    let (test, modules) = rest.split_last().unwrap();
    let folder = match *binary {
        "jobs" => "workloads/tests/jobs",
        "storage" | "simulation" | "transport" | "raft" | "gossip" | "backup" | "detectors" => {
            "replication/tests"
        }
        "suite" => "tests",
        _ => panic!("a document names a test of {binary}, which is none of the test binaries it knows"),
    };
    let file = match (*binary, modules) {
        // The tests of a backend are made by a macro.
        ("simulation", _) => "simulation/main.rs".to_owned(),
        ("storage" | "transport", [module]) => format!("{binary}/{module}.rs"),
        (_, []) => format!("{binary}.rs"),
        (_, modules) => format!("{}.rs", modules.join("/")),
    };
    (root.join(folder).join(file), (*test).to_owned())
}

/// Checks every test that a document names in code spans; returns how many there are.
fn check(document: &str, least_parts: usize) -> usize {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(document)).unwrap();
    let named = text.split('`').skip(1).step_by(2).map(|code| code.split("::").collect::<Vec<_>>());
    let mut count = 0;
    for named in named.filter(|named| named.len() >= least_parts && named.last() != Some(&"")) {
        let (file, test) = source(&named);
        let source = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(source.contains(&format!("fn {test}()")), "{} has no test {test}", file.display());
        if let ["simulation", backend, test] = named[..] {
            // The macro whose tests have this one makes them for this backend.
            let macros = source.split("macro_rules! ").skip(1);
            let made = macros.into_iter().filter(|rest| {
                rest.split("\n}\n").next().is_some_and(|body| body.contains(&format!("fn {test}()")))
            });
            let mut names = made.filter_map(|rest| rest.split(' ').next());
            let called = |name: &str| source.contains(&format!("\n{name}!({backend},"));
            assert!(names.any(called), "{} has no {test} of {backend}", file.display());
        }
        count += 1;
    }
    count
}

#[test]
fn every_test_that_the_table_of_levels_names_exists() {
    // Two tables of five levels and three failures, of which two cells need none.
    let count = check("RECOVERY.md", 3);
    assert!(count >= 28, "{count} tests are named");
}

#[test]
fn every_test_that_the_table_of_failures_names_exists() {
    // Thirteen failures and five columns, nearly every cell with its test.
    let count = check("FAILURES.md", 2);
    assert!(count >= 64, "{count} tests are named");
}
