//! From a definition to its cells, the options of each, and the trials in the order in which they are run. Pure.

use std::collections::BTreeMap;

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

use super::definition::{Arity, Definition, Known, Level, Scalar};

/// The options of one cell, by name.
pub type Options = BTreeMap<String, Level>;

/// One run of one cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Its number, from 1, in the order in which trials are run.
    pub trial: u64,
    /// Index of its cell.
    pub cell: usize,
    /// Which of the cell's repetitions it is, from 1.
    pub repetition: u64,
    /// Its seed.
    pub seed: u64,
}

/// Every combination: of the factors' levels, and of a case of every group. The last factor varies fastest. A combination
/// that occurs twice is one cell.
#[must_use]
pub fn cells(definition: &Definition) -> Vec<Options> {
    let mut cells = vec![definition.fixed.clone()];
    for cases in definition.cases.values() {
        let alternatives: Vec<Options> =
            cases.iter().flat_map(|case| vary(vec![Options::new()], case)).collect();
        cells = cross(&cells, &alternatives);
    }
    let mut cells = vary(cells, &definition.factors);
    let mut seen = Vec::new();
    cells.retain(|cell| {
        let new = !seen.contains(cell);
        if new {
            seen.push(cell.clone());
        }
        new
    });
    cells
}

fn vary(mut cells: Vec<Options>, factors: &BTreeMap<String, super::definition::Levels>) -> Vec<Options> {
    for (option, levels) in factors {
        let levels: Vec<Options> =
            levels.list().into_iter().map(|level| Options::from([(option.clone(), level)])).collect();
        cells = cross(&cells, &levels);
    }
    cells
}

fn cross(cells: &[Options], alternatives: &[Options]) -> Vec<Options> {
    let joined = |cell: &Options, more: &Options| cell.clone().into_iter().chain(more.clone()).collect();
    cells.iter().flat_map(|cell| alternatives.iter().map(move |more| joined(cell, more))).collect()
}

/// How many cells there are at most, without making them; none if that is beyond counting.
#[must_use]
pub fn count(definition: &Definition) -> Option<u64> {
    let levels = |factors: &BTreeMap<String, super::definition::Levels>| {
        factors.values().try_fold(1u64, |product, levels| product.checked_mul(levels.list().len() as u64))
    };
    let groups = definition.cases.values().try_fold(1u64, |product, cases| {
        let sum = cases.iter().try_fold(0u64, |sum, case| sum.checked_add(levels(case)?))?;
        product.checked_mul(sum)
    })?;
    levels(&definition.factors)?.checked_mul(groups)
}

/// The words of a command line that has a cell's options.
#[must_use]
pub fn words(cell: &Options, known: &[Known]) -> Vec<String> {
    let mut words = Vec::new();
    for (option, level) in cell {
        let flag = known.iter().any(|known| known.name == *option && known.arity == Arity::Flag);
        match level {
            Level::One(Scalar::Flag(given)) if flag => words.extend(given.then(|| format!("--{option}"))),
            // One word, so that a value may begin with a dash.
            level => words.extend(level.values().into_iter().map(|value| format!("--{option}={value}"))),
        }
    }
    words
}

/// The trials: every cell once in each repetition, in an order that the seed draws for each repetition, so that what drifts
/// on the machine meets all cells alike.
#[must_use]
pub fn order(definition: &Definition, cells: &[Options], known: &[Known]) -> Vec<Turn> {
    let mut turns = Vec::new();
    for repetition in 1..=definition.repetitions {
        let mut block: Vec<usize> = (0..cells.len()).collect();
        let mut dice =
            ChaCha8Rng::from_seed(hash(&["order", &definition.seed.to_string(), &repetition.to_string()]));
        block.shuffle(&mut dice);
        for cell in block {
            let trial = turns.len() as u64 + 1;
            let seed = seed(definition.seed, repetition, &cells[cell], known);
            turns.push(Turn { trial, cell, repetition, seed });
        }
    }
    turns
}

/// The seed of a cell's repetition: the same for cells that differ in nothing but their store or their network, so that
/// backends are compared on the same data and the same faults, whoever runs them where. Below 2^53, so that every JSON reader keeps all of its digits.
fn seed(experiment: u64, repetition: u64, cell: &Options, known: &[Known]) -> u64 {
    let left_out = |option: &str| known.iter().any(|known| known.name == option && known.of_store_or_network);
    let mut parts = vec!["seed".to_owned(), experiment.to_string(), repetition.to_string()];
    for (option, level) in cell.iter().filter(|(option, _)| !left_out(option)) {
        parts.push(format!("{option}={level}"));
    }
    let hash = hash(&parts);
    let first = hash.first_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(first) >> 11
}

fn hash(parts: &[impl AsRef<str>]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.as_ref().len() as u64).to_le_bytes());
        hasher.update(part.as_ref());
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::super::definition::tests::parse;
    use super::*;
    use crate::cli::run_options;

    const TEXT: &str = r#"
        name = "x"
        repetitions = 3
        [fixed]
        rounds = 2
        [factors]
        nodes = [3, 5]
        fault = [[], ["kill@aggregator,round:1", "stop@worker,round:2"]]
        [[cases.store]]
        backend = "raft"
        payload = ["inline", "digest"]
        [[cases.store]]
        backend = "gossip"
        no-reuse = true
    "#;

    #[test]
    fn cells_are_the_product_of_factors_and_cases() {
        let definition = parse(TEXT).unwrap();
        let cells = cells(&definition);
        assert_eq!((cells.len(), count(&definition)), (12, Some(12)));
        let lines: Vec<String> = cells.iter().map(|cell| words(cell, &run_options()).join(" ")).collect();
        assert_eq!(lines[0], "--backend=raft --nodes=3 --payload=inline --rounds=2");
        assert_eq!(
            lines[11],
            "--backend=gossip --fault=kill@aggregator,round:1 --fault=stop@worker,round:2 --no-reuse --nodes=5 --rounds=2"
        );
    }

    #[test]
    fn a_combination_that_occurs_twice_is_one_cell() {
        let text = "name = \"x\"\n[[cases.sweep]]\nnodes = [3, 4]\nrounds = 1\n[[cases.sweep]]\nnodes = 4\nrounds = [1, 2]\n";
        assert_eq!(cells(&parse(text).unwrap()).len(), 3);
    }

    #[test]
    fn every_repetition_runs_every_cell_in_another_order() {
        let definition = parse(TEXT).unwrap();
        let cells = cells(&definition);
        let turns = order(&definition, &cells, &run_options());
        assert_eq!(turns, order(&definition, &cells, &run_options()));
        assert_eq!(turns.iter().map(|turn| turn.trial).collect::<Vec<_>>(), (1..=36).collect::<Vec<_>>());
        let blocks: Vec<Vec<usize>> =
            turns.chunks(12).map(|block| block.iter().map(|turn| turn.cell).collect()).collect();
        for block in &blocks {
            let mut sorted = block.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..12).collect::<Vec<_>>());
        }
        assert!(blocks[0] != blocks[1] && blocks[1] != blocks[2], "{blocks:?}");
    }

    #[test]
    fn stores_that_are_compared_share_their_seed_and_nothing_else_does() {
        let definition = parse(TEXT).unwrap();
        let cells = cells(&definition);
        let turns = order(&definition, &cells, &run_options());
        let mut seeds: BTreeMap<u64, Vec<&Options>> = BTreeMap::new();
        for turn in &turns {
            assert!(turn.seed < 1 << 53);
            seeds.entry(turn.seed).or_default().push(&cells[turn.cell]);
        }
        assert_eq!(seeds.len(), 3 * 4, "repetitions, and nodes with faults");
        for cells in seeds.values() {
            assert_eq!(cells.len(), 3);
            assert!(
                cells
                    .iter()
                    .all(|cell| cell["nodes"] == cells[0]["nodes"] && cell["fault"] == cells[0]["fault"])
            );
        }
    }
}
