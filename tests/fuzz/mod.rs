//! Every decoder over its seeds in `fuzz/corpus`, and over mutations of them: the functions that libFuzzer is given, too
//! (`scripts/fuzz`), without its instrumentation, so that they cost CI seconds.
//!
//! A seed is accepted; one whose name begins with `refused` is refused, as is what once crashed a decoder.

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "there it is a crate")]
mod decoders;
mod mutations;
mod seeds;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// Mutations of the seeds of each target: always the same.
const MUTATIONS: usize = 2000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The seeds of a target by name.
fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = root().join("fuzz/corpus").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let seed = |file: std::io::Result<fs::DirEntry>| {
        let path = file.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
    };
    files.map(seed).collect()
}

/// Runs a target on bytes, which are kept if it fails.
fn run(target: &str, bytes: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| decoders::run(target, bytes))).unwrap_or_else(|_| {
        let folder = root().join("target/fuzz/crashes");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join(format!("{target}-mutation"));
        fs::write(&file, bytes).unwrap();
        panic!("{target} fails; `scripts/fuzz {target} target/fuzz/crashes/{target}-mutation` repeats it")
    })
}

fn holds(target: &str) {
    let seeds = corpus(target);
    for (name, seed) in &seeds {
        assert_eq!(run(target, seed), !name.starts_with("refused"), "fuzz/corpus/{target}/{name}");
    }
    let mut dice = ChaCha8Rng::seed_from_u64(9);
    let seeds: Vec<Vec<u8>> = seeds.into_values().collect();
    for _ in 0..MUTATIONS {
        run(target, &mutations::of(&seeds, &mut dice));
    }
}

macro_rules! targets {
    ($($target:ident)*) => {
        $(#[test]
        fn $target() {
            holds(stringify!($target));
        })*

        #[test]
        fn every_target_is_tested_and_built() {
            let tested = [$(stringify!($target)),*];
            assert_eq!(decoders::TARGETS.map(|(name, _)| name), tested);
            for name in tested {
                let source = fs::read_to_string(root().join(format!("fuzz/fuzz_targets/{name}.rs"))).unwrap();
                assert!(source.contains(&format!("fuzz::run(\"{name}\", bytes)")), "{source}");
            }
        }
    };
}

targets! {
    frame replication_plane gossip_state learning_plane keyvalue storage cifar rest control manifest results tables
    inventory_ini inventory_yaml experiment link words packet etcd metrics
}
