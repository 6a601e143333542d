//! Which operations clients do, and when: a function of the settings and a seed. And the clients that do them.
//!
//! With a rate, operations are due at fixed times whatever became of those before (open loop), and their latency counts from
//! then: a server that stalls is not spared the operations that would have come meanwhile. Without, a client's next operation
//! is due when its last one ended (closed loop).

use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use super::client::{Client, ClientError, Delivery, Settings};
use super::history::{Ended, Kind, NUMBER_BYTES, Operation, Stage, key, number, value};
use super::message::{Freshness, MAX_VALUE_BYTES};

/// Most clients of a test.
pub const MAX_CLIENTS: u32 = 1024;
/// Most entries of a test.
pub const MAX_ENTRIES: u32 = 1_000_000;

/// Which keys.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keys {
    /// All alike.
    Uniform,
    /// The i-th with a chance proportional to i to the power of minus this.
    Zipf {
        /// The exponent.
        exponent: f64,
    },
}

/// A test's settings, the same for every client.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Clients, each with a connection of its own; 0: the cluster only serves.
    pub clients: u32,
    /// Entries of the dictionary.
    pub entries: u32,
    /// Bytes of a value.
    pub value_bytes: u32,
    /// Share of operations that read.
    pub read_ratio: f64,
    /// Share of operations that delete.
    pub delete_ratio: f64,
    /// Which keys.
    pub keys: Keys,
    /// Operations per second of all clients together; none: closed loop.
    pub rate: Option<f64>,
    /// How long clients begin operations.
    pub duration_ns: u64,
    /// How long an operation may take before it is given up.
    pub patience_ns: u64,
    /// How new reads have to be.
    pub freshness: Freshness,
    /// Whether writes that are repeated are applied once.
    pub exactly_once: bool,
    /// Seed of every choice.
    pub seed: u64,
}

/// A setting out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{what} must be {range}, not {given}")]
pub struct OutOfRange {
    /// The setting.
    pub what: &'static str,
    /// Its range in words.
    pub range: String,
    /// What was given.
    pub given: String,
}

impl Load {
    /// Checks every setting.
    ///
    /// # Errors
    /// The first that is out of its range.
    pub fn validate(&self) -> Result<(), OutOfRange> {
        let between = |what, given: u64, least: u64, most: u64| {
            let wrong =
                || OutOfRange { what, range: format!("from {least} to {most}"), given: given.to_string() };
            if (least..=most).contains(&given) { Ok(()) } else { Err(wrong()) }
        };
        let share = |what, given: f64| {
            let wrong = || OutOfRange { what, range: "from 0 to 1".into(), given: given.to_string() };
            if (0.0..=1.0).contains(&given) { Ok(()) } else { Err(wrong()) }
        };
        between("clients", self.clients.into(), 0, MAX_CLIENTS.into())?;
        between("entries", self.entries.into(), 1, MAX_ENTRIES.into())?;
        between("value-size", self.value_bytes.into(), NUMBER_BYTES as u64, MAX_VALUE_BYTES as u64)?;
        share("read-ratio", self.read_ratio)?;
        share("delete-ratio", self.delete_ratio)?;
        share("read-ratio and delete-ratio together", self.read_ratio + self.delete_ratio)?;
        if let Some(rate) = self.rate.filter(|rate| !(rate.is_finite() && *rate > 0.0)) {
            return Err(OutOfRange { what: "rate", range: "above 0".into(), given: rate.to_string() });
        }
        if let Keys::Zipf { exponent } = self.keys
            && !(0.0..=10.0).contains(&exponent)
        {
            let given = exponent.to_string();
            return Err(OutOfRange { what: "zipf exponent", range: "from 0 to 10".into(), given });
        }
        Ok(())
    }

    /// How a client of the test behaves.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let patience = Duration::from_nanos(self.patience_ns);
        let delivery = if self.exactly_once { Delivery::ExactlyOnce } else { Delivery::AtLeastOnce };
        // A node that was stopped is given up in time for another one to answer.
        Settings { attempt: patience / 5, patience, freshness: self.freshness, delivery }
    }

    /// When the `nth` operation of a client is due after the begin; none: as soon as the one before has ended.
    fn due(&self, client: u32, nth: u64) -> Option<Duration> {
        let place = nth as f64 * f64::from(self.clients) + f64::from(client);
        self.rate.map(|rate| Duration::from_secs_f64(place / rate))
    }
}

/// Draws the operations of one client.
#[derive(Debug)]
struct Draw {
    load: Load,
    rng: ChaCha8Rng,
    /// With zipf: the chance of a key up to each.
    cumulative: Arc<[f64]>,
}

/// The chances of keys, added up; empty if all are alike. Shared by clients.
fn cumulative(load: &Load) -> Arc<[f64]> {
    let Keys::Zipf { exponent } = load.keys else { return Arc::from([]) };
    let mut sum = 0.0;
    let chances = (1..=load.entries).map(|rank| {
        sum += f64::from(rank).powf(-exponent);
        sum
    });
    chances.collect()
}

impl Draw {
    fn new(load: Load, client: u32, cumulative: Arc<[f64]>) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(load.seed);
        rng.set_stream(u64::from(client) + 1);
        Self { load, rng, cumulative }
    }

    fn next(&mut self) -> (Kind, u32) {
        let kind = match self.rng.random::<f64>() {
            share if share < self.load.read_ratio => Kind::Get,
            share if share < self.load.read_ratio + self.load.delete_ratio => Kind::Delete,
            _ => Kind::Set,
        };
        let key = match self.cumulative.last() {
            None => self.rng.random_range(0..self.load.entries),
            Some(sum) => {
                let drawn = self.rng.random::<f64>() * sum;
                self.cumulative.partition_point(|up_to| *up_to <= drawn) as u32
            }
        };
        (kind, key.min(self.load.entries - 1))
    }
}

/// Nanoseconds of the clock that a history is written in.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Whatever can be asked for an entry: a client of this suite's servers, or of somebody else's.
pub trait Dictionary {
    /// The value of `key`; on failure whether it may have happened.
    fn get(&mut self, key: &str) -> impl Future<Output = Result<Option<bytes::Bytes>, Ended>> + Send;
    /// Gives `key` a value.
    fn set(&mut self, key: &str, value: bytes::Bytes) -> impl Future<Output = Result<(), Ended>> + Send;
    /// Removes `key`.
    fn delete(&mut self, key: &str) -> impl Future<Output = Result<(), Ended>> + Send;
    /// The node asked last, and the requests sent so far.
    fn trace(&self) -> (u64, u64);
}

impl Dictionary for Client {
    async fn get(&mut self, key: &str) -> Result<Option<bytes::Bytes>, Ended> {
        Self::get(self, key).await.map_err(|error| ended(&error))
    }

    async fn set(&mut self, key: &str, value: bytes::Bytes) -> Result<(), Ended> {
        Self::set(self, key, value).await.map(drop).map_err(|error| ended(&error))
    }

    async fn delete(&mut self, key: &str) -> Result<(), Ended> {
        Self::delete(self, key).await.map(drop).map_err(|error| ended(&error))
    }

    fn trace(&self) -> (u64, u64) {
        (self.at().0, self.tally().attempts)
    }
}

fn ended(error: &ClientError) -> Ended {
    tracing::debug!(%error, "an operation failed");
    if error.maybe() { Ended::Unknown } else { Ended::Failed }
}

/// One client of a test.
pub struct Runner<D> {
    load: Load,
    client: u32,
    dictionary: D,
    draw: Draw,
    clock: Clock,
    written: u64,
    done: Vec<Operation>,
}

impl<D> std::fmt::Debug for Runner<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("client", &self.client).finish_non_exhaustive()
    }
}

/// The clients of a test, one for each of `dictionaries`.
#[must_use]
pub fn runners<D: Dictionary>(load: Load, dictionaries: Vec<D>, clock: &Clock) -> Vec<Runner<D>> {
    let cumulative = cumulative(&load);
    let runner = |(client, dictionary): (u32, D)| Runner {
        load,
        client,
        dictionary,
        draw: Draw::new(load, client, cumulative.clone()),
        clock: clock.clone(),
        written: 0,
        done: Vec::new(),
    };
    (0..).zip(dictionaries).map(runner).collect()
}

impl<D: Dictionary> Runner<D> {
    /// Writes this client's share of the entries.
    pub async fn fill(&mut self) {
        for key in (self.client..self.load.entries).step_by(self.load.clients as usize) {
            self.operate(Stage::Fill, Kind::Set, key, None).await;
        }
    }

    /// Does what the test asks for, from `begin` until its time is over.
    pub async fn run(&mut self, begin: Instant) {
        let until = begin + Duration::from_nanos(self.load.duration_ns);
        let begin_ns = (self.clock)() + begin.saturating_duration_since(Instant::now()).as_nanos() as u64;
        sleep_until(begin).await;
        for nth in 0.. {
            let due = self.load.due(self.client, nth);
            let at = due.map_or_else(Instant::now, |due| begin + due);
            if at >= until {
                return;
            }
            sleep_until(at).await;
            let (kind, key) = self.draw.next();
            let intended = due.map(|due| begin_ns + due.as_nanos() as u64);
            self.operate(Stage::Load, kind, key, intended).await;
        }
    }

    /// Reads this client's share of the entries.
    pub async fn verify(&mut self) {
        for key in (self.client..self.load.entries).step_by(self.load.clients as usize) {
            self.operate(Stage::Verify, Kind::Get, key, None).await;
        }
    }

    /// What it did since this was last called.
    pub fn take_history(&mut self) -> Vec<Operation> {
        std::mem::take(&mut self.done)
    }

    async fn operate(&mut self, stage: Stage, kind: Kind, number_of_key: u32, intended: Option<u64>) {
        let name = key(number_of_key);
        let before = self.dictionary.trace().1;
        let start_ns = (self.clock)();
        let (read, outcome) = match kind {
            Kind::Get => match self.dictionary.get(&name).await {
                // A value of somebody else shows up as one that nobody wrote.
                Ok(found) => (found.map(|found| number(&found).unwrap_or(u64::MAX)), Ended::Ok),
                Err(ended) => (None, ended),
            },
            Kind::Set => {
                self.written += 1;
                let written = ((u64::from(self.client) + 1) << 40) | self.written;
                let bytes = value(written, self.load.value_bytes as usize);
                let outcome = self.dictionary.set(&name, bytes).await;
                (Some(written), outcome.err().unwrap_or(Ended::Ok))
            }
            Kind::Delete => (None, self.dictionary.delete(&name).await.err().unwrap_or(Ended::Ok)),
        };
        let (node, attempts) = self.dictionary.trace();
        self.done.push(Operation {
            stage,
            client: self.client,
            key: number_of_key,
            kind,
            value: read,
            intended_ns: intended.unwrap_or(start_ns).min(start_ns),
            start_ns,
            end_ns: (self.clock)(),
            ended: outcome,
            node,
            attempts: attempts - before,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn load() -> Load {
        Load {
            clients: 4,
            entries: 100,
            value_bytes: 100,
            read_ratio: 0.5,
            delete_ratio: 0.1,
            keys: Keys::Uniform,
            rate: None,
            duration_ns: 1_000_000_000,
            patience_ns: 5_000_000_000,
            freshness: Freshness::Index,
            exactly_once: true,
            seed: 7,
        }
    }

    fn drawn(load: Load, count: usize) -> Vec<(Kind, u32)> {
        let mut draw = Draw::new(load, 0, cumulative(&load));
        (0..count).map(|_| draw.next()).collect()
    }

    #[test]
    fn a_seed_repeats_its_operations_and_shares_are_kept() {
        let operations = drawn(load(), 10_000);
        assert_eq!(operations, drawn(load(), 10_000));
        let share = |kind| operations.iter().filter(|(drawn, _)| *drawn == kind).count() as f64 / 10_000.0;
        assert!((share(Kind::Get) - 0.5).abs() < 0.03 && (share(Kind::Delete) - 0.1).abs() < 0.02);
        assert!((0..100).all(|key| operations.iter().any(|(_, drawn)| *drawn == key)));
    }

    #[test]
    fn zipf_prefers_the_first_keys() {
        let zipf = Load { keys: Keys::Zipf { exponent: 1.0 }, ..load() };
        let operations = drawn(zipf, 20_000);
        let count = |key| operations.iter().filter(|(_, drawn)| *drawn == key).count() as f64;
        let ratio = count(0) / count(3);
        assert!((3.0..5.3).contains(&ratio), "the first key is four times as likely as the fourth: {ratio}");
    }

    #[test]
    fn a_rate_says_when_each_operation_is_due() {
        let open = Load { rate: Some(1000.0), ..load() };
        assert_eq!(open.due(0, 0), Some(Duration::ZERO));
        assert_eq!(open.due(3, 2), Some(Duration::from_millis(11)));
        assert_eq!(load().due(3, 2), None);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        assert_eq!(load().validate(), Ok(()));
        let wrong = |load: Load| load.validate().unwrap_err().to_string();
        assert_eq!(wrong(Load { clients: 1025, ..load() }), "clients must be from 0 to 1024, not 1025");
        assert_eq!(wrong(Load { value_bytes: 3, ..load() }), "value-size must be from 16 to 65536, not 3");
        assert!(wrong(Load { read_ratio: 0.95, ..load() }).contains("together"));
        assert!(wrong(Load { rate: Some(f64::NAN), ..load() }).starts_with("rate must be above 0"));
        assert!(wrong(Load { keys: Keys::Zipf { exponent: 11.0 }, ..load() }).contains("zipf"));
    }
}
