//! Who gets which examples: a pure function of the job's settings and its seed, so that every node can work out its own
//! shard, and no two shards share an example. Reads no file and knows no node beyond its number.

use std::fmt;

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::config::{Config, Partition};
use super::model::CLASSES;
use super::seed::generator;

/// How examples are shared out: equal cuts give equal shards of the same data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cut {
    /// How many workers share them, those that join later included.
    pub nodes: u64,
    /// How they are spread.
    pub partition: Partition,
    /// Training examples of each.
    pub examples_per_node: u32,
    /// Test examples of each.
    pub test_examples_per_node: u32,
    /// The run's seed.
    pub seed: u64,
}

impl Cut {
    /// That of a job that `nodes` take part in.
    #[must_use]
    pub fn of(config: &Config, nodes: usize) -> Self {
        Self {
            nodes: nodes as u64,
            partition: config.partition,
            examples_per_node: config.examples_per_node,
            test_examples_per_node: config.test_examples_per_node,
            seed: config.seed,
        }
    }
}

/// One of the shards that a cut makes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// Which, from 1: the place of its node among the nodes.
    pub place: u64,
    /// The cut.
    pub cut: Cut,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, cut } = self;
        let Cut { nodes, partition, examples_per_node, test_examples_per_node, seed } = cut;
        write!(f, "node {place} of {nodes} (seed {seed}, ")?;
        match partition {
            Partition::Iid => f.write_str("iid")?,
            Partition::Dirichlet { alpha } => write!(f, "dirichlet:{alpha}")?,
        }
        write!(f, ", {examples_per_node} examples and {test_examples_per_node} for tests each)")
    }
}

/// What is there to be shared out.
#[derive(Debug, Clone, Copy)]
pub enum Pool<'a> {
    /// This many examples, of any class. Enough for [`Partition::Iid`].
    Len(u32),
    /// Examples by their class, 0 to 9.
    Labels(&'a [u8]),
}

impl Pool<'_> {
    /// Number of examples.
    pub fn len(&self) -> usize {
        match self {
            Self::Len(examples) => *examples as usize,
            Self::Labels(labels) => labels.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why examples cannot be shared out as asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// There are not enough examples.
    #[error("{workers} workers with {examples_per_node} examples each need {needed} examples, there are {available}: {}",
            advice(*.available, *.workers, *.examples_per_node),
            needed = u128::from(*.workers) * u128::from(*.examples_per_node))]
    TooFew {
        /// Workers asked for.
        workers: u64,
        /// Examples asked for each.
        examples_per_node: u32,
        /// Examples there are.
        available: usize,
    },
    /// The Dirichlet distribution does not exist for this concentration.
    #[error("the Dirichlet concentration alpha is {alpha}: it must be greater than 0 and finite")]
    Alpha {
        /// The value given.
        alpha: f64,
    },
    /// A Dirichlet split was asked for without telling the classes.
    #[error("a Dirichlet split needs the label of every example")]
    LabelsNeeded,
    /// A label is no class.
    #[error("the label of example {index} is {label}: classes are 0 to 9")]
    Label {
        /// The example.
        index: usize,
        /// Its label.
        label: u8,
    },
}

/// What would work instead of too large a demand.
fn advice(available: usize, workers: u64, examples_per_node: u32) -> String {
    let each = available as u64 / workers.max(1);
    let nodes = available as u64 / u64::from(examples_per_node.max(1));
    format!("use at most {each} examples per worker, or at most {nodes} workers")
}

/// Shares out examples: for every worker the indices of exactly `examples_per_node` examples, no two alike in all shards
/// together. Equal arguments give equal shards. A shard is in random order under both partitions.
///
/// Dirichlet, after Hsu et al. 2019: a worker's class shares are drawn from a symmetric Dirichlet distribution, then its
/// examples one by one from its shares, without replacement. A class that runs out leaves its share to the worker's other
/// classes in proportion. Workers draw in turns, so that shortage meets all of them alike.
///
/// # Errors
/// [`ShardError`].
pub fn assign(
    partition: Partition,
    pool: Pool<'_>,
    workers: usize,
    examples_per_node: u32,
    seed: u64,
) -> Result<Vec<Vec<u32>>, ShardError> {
    let needed = workers.checked_mul(examples_per_node as usize);
    if needed.is_none_or(|needed| needed > pool.len()) || u32::try_from(pool.len()).is_err() {
        return Err(ShardError::TooFew { workers: workers as u64, examples_per_node, available: pool.len() });
    }
    match partition {
        Partition::Iid => Ok(iid(pool.len() as u32, workers, examples_per_node, seed)),
        Partition::Dirichlet { alpha } if !(alpha.is_finite() && alpha > 0.0) => {
            Err(ShardError::Alpha { alpha })
        }
        Partition::Dirichlet { alpha } => match pool {
            Pool::Len(_) => Err(ShardError::LabelsNeeded),
            Pool::Labels(labels) => dirichlet(alpha, labels, workers, examples_per_node, seed),
        },
    }
}

fn iid(examples: u32, workers: usize, examples_per_node: u32, seed: u64) -> Vec<Vec<u32>> {
    let mut indices: Vec<u32> = (0..examples).collect();
    indices.shuffle(&mut generator(seed, "iid shards", &[]));
    let each = examples_per_node as usize;
    (0..workers).map(|worker| indices[worker * each..][..each].to_vec()).collect()
}

fn dirichlet(
    alpha: f64,
    labels: &[u8],
    workers: usize,
    examples_per_node: u32,
    seed: u64,
) -> Result<Vec<Vec<u32>>, ShardError> {
    let mut rng = generator(seed, "dirichlet shards", &[]);
    let mut left: [Vec<u32>; CLASSES] = Default::default();
    for (index, label) in labels.iter().enumerate() {
        let class = left.get_mut(usize::from(*label)).ok_or(ShardError::Label { index, label: *label })?;
        class.push(index as u32);
    }
    left.iter_mut().for_each(|class| class.shuffle(&mut rng));
    let shares: Vec<[f64; CLASSES]> =
        (0..workers).map(|_| std::array::from_fn(|_| log_gamma_variate(alpha, &mut rng))).collect();
    let mut shards = vec![Vec::with_capacity(examples_per_node as usize); workers];
    for _ in 0..examples_per_node {
        for (shard, shares) in shards.iter_mut().zip(&shares) {
            let class = draw_class(shares, &left, &mut rng);
            // There are enough examples for all draws, so some class has one and `draw_class` chose it.
            shard.extend(left[class].pop());
        }
    }
    Ok(shards)
}

/// A class that has examples left, with probability in proportion to the worker's share of it (given as logarithms).
fn draw_class(log_shares: &[f64; CLASSES], left: &[Vec<u32>; CLASSES], rng: &mut impl Rng) -> usize {
    let available = || (0..CLASSES).filter(|class| !left[*class].is_empty());
    let largest = available().map(|class| log_shares[class]).fold(f64::NEG_INFINITY, f64::max);
    let weight = |class: usize| (log_shares[class] - largest).exp();
    let mut point = rng.random::<f64>() * available().map(weight).sum::<f64>();
    let mut chosen = 0;
    for class in available() {
        // A class of no weight is passed over, so that rounding at the end cannot choose it.
        if weight(class) > 0.0 {
            chosen = class;
            point -= weight(class);
            if point < 0.0 {
                break;
            }
        }
    }
    chosen
}

/// Logarithm of a Gamma(alpha, 1) variate (Marsaglia and Tsang 2000, with their boost for alpha below 1). Normalised to
/// sum 1, such variates are Dirichlet distributed. The logarithm, because for a small alpha the variate itself is 0 in
/// floating point.
fn log_gamma_variate(alpha: f64, rng: &mut impl Rng) -> f64 {
    // In (0, 1]: its logarithm is finite.
    let mut uniform = || 1.0 - rng.random::<f64>();
    let boost = if alpha < 1.0 { uniform().ln() / alpha } else { 0.0 };
    let d = if alpha < 1.0 { alpha + 1.0 } else { alpha } - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        // Box and Muller's normal variate.
        let normal = (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        let v = (1.0 + c * normal).powi(3);
        if v > 0.0 && uniform().ln() < 0.5 * normal * normal + d * (1.0 - v + v.ln()) {
            // Bounded below, so that differences of two of these are numbers even for the smallest alpha.
            return (d.ln() + v.ln() + boost).max(f64::MIN / 4.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(examples: usize) -> Vec<u8> {
        (0..examples).map(|i| (i % 10) as u8).collect()
    }

    fn partitions() -> impl Strategy<Value = Partition> {
        prop_oneof![
            Just(Partition::Iid),
            prop_oneof![Just(f64::MIN_POSITIVE), Just(1e300), 0.01..100.0]
                .prop_map(|alpha| Partition::Dirichlet { alpha }),
        ]
    }

    /// Mean distance (total variation) between a worker's class distribution and the uniform one.
    fn skew(shards: &[Vec<u32>]) -> f64 {
        let distance = |shard: &Vec<u32>| {
            let mut counts = [0.0; 10];
            shard.iter().for_each(|index| counts[*index as usize % 10] += 1.0 / shard.len() as f64);
            counts.iter().map(|share| (share - 0.1f64).abs()).sum::<f64>() / 2.0
        };
        shards.iter().map(distance).sum::<f64>() / shards.len() as f64
    }

    proptest! {
        #[test]
        fn shards_are_disjoint_complete_and_repeatable(
            partition in partitions(), workers in 1usize..12, each in 0u32..60, spare in 0usize..40, seed: u64,
        ) {
            let labels = labels(workers * each as usize + spare);
            let shards = assign(partition, Pool::Labels(&labels), workers, each, seed).unwrap();
            prop_assert_eq!(shards.len(), workers);
            prop_assert!(shards.iter().all(|shard| shard.len() == each as usize));
            let mut all: Vec<u32> = shards.concat();
            all.sort_unstable();
            prop_assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
            prop_assert!(all.last().is_none_or(|last| (*last as usize) < labels.len()));
            prop_assert_eq!(&shards, &assign(partition, Pool::Labels(&labels), workers, each, seed).unwrap());
        }

        #[test]
        fn skew_falls_as_alpha_grows(seed: u64) {
            let labels = labels(20_000);
            let at = |alpha| skew(&assign(Partition::Dirichlet { alpha }, Pool::Labels(&labels), 10, 400, seed).unwrap());
            let (strong, medium, weak) = (at(0.05), at(1.0), at(1_000.0));
            prop_assert!(strong > medium && medium > weak, "{} {} {}", strong, medium, weak);
            prop_assert!(strong > 0.5 && weak < 0.12, "{} {}", strong, weak);
        }
    }

    #[test]
    fn another_seed_gives_other_shards() {
        for partition in [Partition::Iid, Partition::Dirichlet { alpha: 1.0 }] {
            let shards = |seed| assign(partition, Pool::Labels(&labels(1_000)), 3, 100, seed).unwrap();
            assert_ne!(shards(1), shards(2));
        }
    }

    #[test]
    fn demands_that_cannot_be_met_are_errors() {
        let error = assign(Partition::Iid, Pool::Len(10_000), 11, 1_000, 1).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("need 11000") && text.contains("at most 909") && text.contains("at most 10 w"),
            "{text}"
        );
        assert!(assign(Partition::Iid, Pool::Len(5), usize::MAX, u32::MAX, 1).is_err());
        for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = assign(Partition::Dirichlet { alpha }, Pool::Labels(&[0]), 1, 1, 1).unwrap_err();
            assert!(matches!(error, ShardError::Alpha { .. }), "{error}");
        }
        let dirichlet = Partition::Dirichlet { alpha: 1.0 };
        assert_eq!(assign(dirichlet, Pool::Len(5), 1, 1, 1), Err(ShardError::LabelsNeeded));
        let error = assign(dirichlet, Pool::Labels(&[0, 10]), 1, 1, 1);
        assert_eq!(error, Err(ShardError::Label { index: 1, label: 10 }));
    }
}
