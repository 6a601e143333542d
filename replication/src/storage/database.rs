//! One redb file: opened, checked, read and written, with redb's errors and panics turned into [`StorageError`].
//!
//! redb (copy-on-write B-trees, one fsync per transaction, a checksum per page) recovers from any power loss by itself. A
//! file that was changed in another way is found by checking every page when it is opened; a new file gets its name only
//! when it is complete, so that an empty one is never taken for a new one.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use redb::{DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::error::StorageError;
use super::medium::Medium;

/// Version of what the tables hold.
const FORMAT: u32 = 1;

/// Everything is read once, when a node starts; redb's own default is 1 GiB.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Where the format is.
pub(super) const META: &str = "meta";
const FORMAT_KEY: &[u8] = b"format";

/// Changes that become durable together: `None` removes. By table and key, so that the last change of a row counts.
pub(super) type Changes = BTreeMap<&'static str, BTreeMap<Bytes, Option<Bytes>>>;

pub(super) struct Database {
    redb: redb::Database,
    file: String,
}

fn rows(table: &str) -> TableDefinition<'_, &'static [u8], &'static [u8]> {
    TableDefinition::new(table)
}

/// Runs redb on what may be a damaged file: it asserts what it expects to find.
fn guarded<T>(file: &str, operation: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
    catch_unwind(AssertUnwindSafe(operation)).unwrap_or_else(|_| {
        Err(StorageError::Damaged { file: file.into(), reason: "redb refuses its content".into() })
    })
}

fn explain(file: &str, error: impl Into<redb::Error>) -> StorageError {
    let file = file.to_owned();
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => StorageError::InUse { file },
        redb::Error::UpgradeRequired(version) => {
            StorageError::OtherFormat { file, found: format!("redb {version}"), expected: FORMAT }
        }
        redb::Error::Io(error)
            if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
        {
            StorageError::Full { file }
        }
        redb::Error::Io(error)
            if !matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            StorageError::Io { file, reason: error.to_string() }
        }
        redb::Error::PreviousIo => StorageError::Io { file, reason: "an earlier write failed".into() },
        redb::Error::DatabaseClosed => StorageError::Closed { file },
        error => StorageError::Damaged { file, reason: error.to_string() },
    }
}

impl Database {
    /// Opens the file, or makes it. Returns the medium too: what is on it can be opened again.
    pub(super) fn open(path: &Path) -> Result<(Self, Medium), StorageError> {
        let file = path.display().to_string();
        let io = |error: std::io::Error| explain(&file, redb::Error::Io(error));
        if !path.try_exists().map_err(io)? {
            Self::create(path)?;
        }
        let opened = fs::OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
        if opened.metadata().map_err(io)?.len() == 0 {
            return Err(StorageError::Damaged { file, reason: "it is empty".into() });
        }
        let medium = Medium::of_file(opened).map_err(|error| explain(&file, error))?;
        Ok((Self::on(medium.clone(), file)?, medium))
    }

    /// Makes a complete, empty file and only then gives it its name.
    fn create(path: &Path) -> Result<(), StorageError> {
        let file = path.display().to_string();
        let io = |error: std::io::Error| explain(&file, redb::Error::Io(error));
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".new");
        let unfinished = PathBuf::from(unfinished);
        // What an earlier start left unfinished held nothing.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let made = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&unfinished);
        let medium = Medium::of_file(made.map_err(io)?).map_err(|error| explain(&file, error))?;
        drop(Self::on(medium, file.clone())?);
        fs::rename(&unfinished, path).map_err(io)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or_else(|| Path::new("."));
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
    }

    /// Opens whatever `medium` holds; an empty one is made a database.
    pub(super) fn on(medium: Medium, file: String) -> Result<Self, StorageError> {
        let name = file.clone();
        guarded(&name, || {
            let opened = builder().create_with_backend(medium);
            let mut redb = opened.map_err(|error: DatabaseError| explain(&file, error))?;
            // false: bookkeeping that no row depends on was made anew.
            redb.check_integrity().map_err(|error| explain(&file, error))?;
            let database = Self { redb, file };
            database.check_format()?;
            Ok(database)
        })
    }

    fn check_format(&self) -> Result<(), StorageError> {
        let meta = self.load(META)?;
        let format = meta.iter().find(|(key, _)| key[..] == *FORMAT_KEY).map(|(_, value)| value.clone());
        match format {
            Some(found) if found[..] == FORMAT.to_le_bytes() => Ok(()),
            Some(found) => Err(StorageError::OtherFormat {
                file: self.file.clone(),
                found: format!("{:?}", &found[..]),
                expected: FORMAT,
            }),
            None if meta.is_empty() && self.is_empty()? => {
                let format = Some(Bytes::copy_from_slice(&FORMAT.to_le_bytes()));
                let row = BTreeMap::from([(Bytes::from_static(FORMAT_KEY), format)]);
                self.commit(&[&Changes::from([(META, row)])])
            }
            None => Err(StorageError::Damaged {
                file: self.file.clone(),
                reason: "it is a database of something else".into(),
            }),
        }
    }

    fn is_empty(&self) -> Result<bool, StorageError> {
        let reading = self.redb.begin_read().map_err(|error| self.explain(error))?;
        Ok(reading.list_tables().map_err(|error| self.explain(error))?.next().is_none())
    }

    fn explain(&self, error: impl Into<redb::Error>) -> StorageError {
        explain(&self.file, error)
    }

    /// Every row of a table, in the order of its keys.
    pub(super) fn load(&self, table: &str) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        guarded(&self.file, || {
            let reading = self.redb.begin_read().map_err(|error| self.explain(error))?;
            let table = match reading.open_table(rows(table)) {
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                table => table.map_err(|error| self.explain(error))?,
            };
            let rows = table.iter().map_err(|error| self.explain(error))?;
            rows.map(|row| {
                let (key, value) = row.map_err(|error| self.explain(error))?;
                Ok((Bytes::copy_from_slice(key.value()), Bytes::copy_from_slice(value.value())))
            })
            .collect()
        })
    }

    /// Makes the changes durable, all or none; no row is in two of them. Blocks for as long as the disk takes.
    pub(super) fn commit(&self, changes: &[&Changes]) -> Result<(), StorageError> {
        guarded(&self.file, || {
            let mut writing = self.redb.begin_write().map_err(|error| self.explain(error))?;
            writing.set_durability(Durability::Immediate).map_err(|error| self.explain(error))?;
            for (table, changes) in changes.iter().copied().flatten() {
                let mut table = writing.open_table(rows(table)).map_err(|error| self.explain(error))?;
                for (key, value) in changes {
                    let done = match value {
                        Some(value) => table.insert(&key[..], &value[..]).map(drop),
                        None => table.remove(&key[..]).map(drop),
                    };
                    done.map_err(|error| self.explain(error))?;
                }
            }
            writing.commit().map_err(|error| self.explain(error))
        })
    }
}

fn builder() -> redb::Builder {
    let mut builder = redb::Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}
