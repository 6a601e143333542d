//! What documents say of the code.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder of a test binary.
fn folder(binary: &str) -> PathBuf {
    let folder = match binary {
        "jobs" => "workloads/tests/jobs",
        "storage" => "replication/tests/storage",
        "suite" => "tests",
        _ => panic!("docs/RECOVERY.md names a test of {binary}, which is none of the test binaries it knows"),
    };
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder)
}

#[test]
fn every_test_that_the_table_of_levels_names_exists() {
    let table =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/RECOVERY.md")).unwrap();
    let named = table.split('`').skip(1).step_by(2).filter_map(|code| {
        let parts: Vec<&str> = code.split("::").collect();
        <[&str; 3]>::try_from(parts).ok()
    });
    let mut count = 0;
    for [binary, module, test] in named {
        let file = folder(binary).join(format!("{module}.rs"));
        let source = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(source.contains(&format!("fn {test}()")), "{} has no test {test}", file.display());
        count += 1;
    }
    // Two tables of five levels and three failures, of which two cells need none.
    assert!(count >= 28, "{count} tests are named");
}
