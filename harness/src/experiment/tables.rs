//! The tables of an experiment's folder: rows of all trials, each file's first column the trial.
//!
//! A trial counts once its row in trials.csv is complete, which is written last. What a controller that was killed left
//! behind it is removed when the folder is opened again. Does not know what the rows say.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::exit::Usage;
use crate::record::write_whole;

/// The table whose rows say which trials count.
pub const TRIALS: &str = "trials.csv";
/// Tables of a single run whose rows are gathered.
const GATHERED: [&str; 7] = [
    "rounds.csv",
    "checkpoints.csv",
    "failovers.csv",
    "traffic.csv",
    "nodes.csv",
    "capture_totals.csv",
    "events.csv",
];
/// The first column everywhere.
const KEY: &str = "trial";
/// Folder of the single runs' folders.
const RAW: &str = "trials";

/// The tables, open for more rows.
#[derive(Debug)]
pub struct Tables {
    dir: PathBuf,
    columns: Vec<String>,
    done: BTreeSet<u64>,
    /// Failed trials among these.
    failed: BTreeSet<u64>,
    trials: File,
}

impl Tables {
    /// Begins the tables in the new folder `dir`; `columns` are those of trials.csv.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn create(dir: &Path, columns: Vec<String>) -> anyhow::Result<Self> {
        fs::create_dir(dir.join(RAW)).context("cannot make the folder of the trials")?;
        write_whole(dir, TRIALS, &line(&columns)?)?;
        Self::open(dir, columns)
    }

    /// Opens the tables of a folder that has some, and removes what belongs to no finished trial.
    ///
    /// # Errors
    /// [`Usage`] if another process writes to them, or if trials.csv has other columns; or if something cannot be read or
    /// written.
    pub fn open(dir: &Path, columns: Vec<String>) -> anyhow::Result<Self> {
        let path = dir.join(TRIALS);
        let failed = || format!("cannot use {}", path.display());
        let trials = OpenOptions::new().read(true).append(true).open(&path).with_context(failed)?;
        let mut tables =
            Self { dir: dir.to_owned(), columns, done: BTreeSet::new(), failed: BTreeSet::new(), trials };
        tables.lock()?;
        tables.read_trials()?;
        for name in GATHERED {
            keep_rows(dir, name, &tables.done)?;
        }
        tables.remove_unfinished()?;
        Ok(tables)
    }

    /// Two controllers never write to the same folder.
    fn lock(&self) -> anyhow::Result<()> {
        match self.trials.try_lock() {
            Ok(()) => Ok(()),
            Err(fs::TryLockError::WouldBlock) => {
                let wrong = "another process runs this experiment";
                Err(refuse(&self.dir, wrong, "wait for its end").into())
            }
            Err(fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("{} cannot be locked", self.dir.join(TRIALS).display()))
            }
        }
    }

    fn read_trials(&mut self) -> anyhow::Result<()> {
        let path = self.dir.join(TRIALS);
        let mut text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let whole = whole_lines(&text);
        if whole < text.len() {
            // In place: the lock is on this file.
            self.trials
                .set_len(whole as u64)
                .with_context(|| format!("cannot shorten {}", path.display()))?;
            text.truncate(whole);
        }
        let mut reader = csv::Reader::from_reader(text.as_slice());
        let headers = reader.headers().with_context(|| format!("{} makes no sense", path.display()))?;
        if !headers.iter().eq(self.columns.iter().map(String::as_str)) {
            let wrong = "its trials.csv has the columns of another version of this program";
            return Err(
                refuse(&self.dir, wrong, "use the program that wrote it, or begin a new folder").into()
            );
        }
        let outcome = self.columns.iter().position(|column| column == "outcome");
        for row in reader.records() {
            let row = row.with_context(|| format!("{} makes no sense", path.display()))?;
            let trial =
                trial_of(&row).with_context(|| format!("{} has a row without a trial", path.display()))?;
            self.done.insert(trial);
            if outcome.and_then(|index| row.get(index)) != Some("completed") {
                self.failed.insert(trial);
            }
        }
        Ok(())
    }

    fn remove_unfinished(&self) -> anyhow::Result<()> {
        let raw = self.dir.join(RAW);
        let failed = || format!("cannot clear {}", raw.display());
        for entry in fs::read_dir(&raw).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            let trial = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if !trial.is_some_and(|trial| self.done.contains(&trial)) {
                fs::remove_dir_all(entry.path()).with_context(failed)?;
            }
        }
        Ok(())
    }

    /// Columns of trials.csv.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Trials that are finished.
    #[must_use]
    pub fn done(&self) -> &BTreeSet<u64> {
        &self.done
    }

    /// Trials that are finished but did not complete.
    #[must_use]
    pub fn failed(&self) -> &BTreeSet<u64> {
        &self.failed
    }

    /// Folder of a trial's own results.
    #[must_use]
    pub fn raw(&self, trial: u64) -> PathBuf {
        self.dir.join(RAW).join(trial.to_string())
    }

    /// Gathers the rows of a finished trial from its folder, and then adds `row`, from when on it counts.
    ///
    /// # Errors
    /// If something cannot be read or written: the trial does not count then.
    pub fn commit(&mut self, trial: u64, row: &[String], completed: bool) -> anyhow::Result<()> {
        for name in GATHERED {
            self.gather(trial, name).with_context(|| format!("cannot add trial {trial} to {name}"))?;
        }
        let failed = || format!("cannot add trial {trial} to {TRIALS}");
        self.trials.write_all(&line(row)?).with_context(failed)?;
        self.trials.sync_data().with_context(failed)?;
        self.done.insert(trial);
        if !completed {
            self.failed.insert(trial);
        }
        Ok(())
    }

    fn gather(&self, trial: u64, name: &str) -> anyhow::Result<()> {
        let text = match fs::read(self.raw(trial).join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            text => text?,
        };
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_slice());
        let mut rows = reader.records();
        let Some(headers) = rows.next().transpose()? else { return Ok(()) };
        let path = self.dir.join(name);
        let headers = keyed(KEY, &headers)?;
        if !path.exists() {
            write_whole(&self.dir, name, &headers)?;
        }
        let mut gathered = Vec::new();
        for row in rows {
            gathered.extend(keyed(&trial.to_string(), &row?)?);
        }
        let mut file = OpenOptions::new().append(true).open(&path)?;
        file.write_all(&gathered)?;
        file.sync_data()?;
        Ok(())
    }
}

fn refuse(dir: &Path, wrong: &str, remedy: &str) -> Usage {
    Usage::option("--resume", dir.display(), wrong, remedy)
}

/// Removes rows of other trials than `done`, and a last row that is cut short.
fn keep_rows(dir: &Path, name: &str, done: &BTreeSet<u64>) -> anyhow::Result<()> {
    let path = dir.join(name);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(&text[..whole_lines(&text)]);
    let mut kept = Vec::new();
    for (index, row) in reader.records().enumerate() {
        let row = row.with_context(|| format!("{} makes no sense", path.display()))?;
        if index == 0 || trial_of(&row).is_some_and(|trial| done.contains(&trial)) {
            kept.extend(line(&row)?);
        }
    }
    if kept == text { Ok(()) } else { write_whole(dir, name, &kept) }
}

/// Bytes up to the end of the last line that is whole. No field of ours has a line break in it.
fn whole_lines(text: &[u8]) -> usize {
    text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
}

fn trial_of(row: &csv::StringRecord) -> Option<u64> {
    row.get(0)?.parse().ok()
}

fn keyed(key: &str, row: &csv::StringRecord) -> anyhow::Result<Vec<u8>> {
    line(std::iter::once(key).chain(row))
}

/// A line of CSV. Line breaks in a field become spaces.
fn line<F: AsRef<str>>(fields: impl IntoIterator<Item = F>) -> anyhow::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(fields.into_iter().map(|field| field.as_ref().replace(['\r', '\n'], " ")))?;
    Ok(writer.into_inner()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<String> {
        ["trial", "outcome"].map(String::from).into()
    }

    fn finish(tables: &mut Tables, trial: u64, outcome: &str) {
        let raw = tables.raw(trial);
        fs::create_dir(&raw).unwrap();
        fs::write(raw.join("rounds.csv"), format!("round,digest\n1,a{trial}\n2,\"b,\"\n")).unwrap();
        tables.commit(trial, &[trial.to_string(), outcome.into()], outcome == "completed").unwrap();
    }

    /// Opens tables that were let go of. A child that another test has just forked holds their lock until it executes.
    fn reopened(dir: &Path) -> Tables {
        loop {
            match Tables::open(dir, columns()) {
                Err(error) if error.to_string().contains("another process") => std::thread::yield_now(),
                opened => return opened.unwrap(),
            }
        }
    }

    fn read(dir: &Path, name: &str) -> String {
        fs::read_to_string(dir.join(name)).unwrap()
    }

    #[test]
    fn rows_of_all_trials_are_in_one_table() {
        let dir = tempfile::tempdir().unwrap();
        let mut tables = Tables::create(dir.path(), columns()).unwrap();
        finish(&mut tables, 1, "completed");
        finish(&mut tables, 3, "failed");
        assert_eq!(
            read(dir.path(), "rounds.csv"),
            "trial,round,digest\n1,1,a1\n1,2,\"b,\"\n3,1,a3\n3,2,\"b,\"\n"
        );
        assert_eq!(read(dir.path(), TRIALS), "trial,outcome\n1,completed\n3,failed\n");
        drop(tables);
        let tables = reopened(dir.path());
        assert_eq!((tables.done(), tables.failed()), (&BTreeSet::from([1, 3]), &BTreeSet::from([3])));
        let second = Tables::open(dir.path(), columns()).unwrap_err().to_string();
        assert!(second.contains("another process"), "{second}");
    }

    #[test]
    fn what_a_killed_controller_left_is_removed() {
        for cut in 0.."2,completed\n".len() {
            let dir = tempfile::tempdir().unwrap();
            let mut tables = Tables::create(dir.path(), columns()).unwrap();
            finish(&mut tables, 1, "completed");
            let (before, rounds) = (read(dir.path(), TRIALS), read(dir.path(), "rounds.csv"));
            finish(&mut tables, 2, "completed");
            drop(tables);
            fs::write(dir.path().join(TRIALS), format!("{before}{}", &"2,completed\n"[..cut])).unwrap();
            let whole = read(dir.path(), "rounds.csv");
            fs::write(dir.path().join("rounds.csv"), &whole[..whole.len() - cut.min(3)]).unwrap();
            let mut tables = reopened(dir.path());
            assert_eq!(tables.done(), &BTreeSet::from([1]));
            assert_eq!((read(dir.path(), TRIALS), read(dir.path(), "rounds.csv")), (before, rounds));
            assert!(tables.raw(1).exists() && !tables.raw(2).exists());
            finish(&mut tables, 2, "completed");
            assert_eq!(read(dir.path(), "rounds.csv"), whole);
        }
    }

    #[test]
    fn other_columns_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Tables::create(dir.path(), columns()).unwrap());
        let mut other = Tables { columns: vec!["trial".into()], ..reopened(dir.path()) };
        let error = other.read_trials().unwrap_err().to_string();
        assert!(error.contains("another version"), "{error}");
    }
}
