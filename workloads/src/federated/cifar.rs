//! CIFAR-10's binary layout: six files of 10,000 records, each one label byte and 3,072 pixel bytes. They lie in a folder
//! or, one after the other, in the official archive. No image is kept that was not asked for.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::data::{DataError, Examples, PIXELS, Split};
use super::shard::Piece;

/// Name of the folder inside of the archive.
pub(super) const FOLDER: &str = "cifar-10-batches-bin";
/// The files, in the order of their examples: five for training, one for testing.
pub(super) const FILES: [&str; 6] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
    "test_batch.bin",
];
/// File with the names of the classes, which nothing needs.
const META: &str = "batches.meta.txt";
/// Note beside the files of one node's shard, which says whose it is; the first entry of an archive.
pub const PIECE_FILE: &str = "shard.json";
/// Longest note, in bytes.
const MAX_NOTE_BYTES: u64 = 4096;
/// Bytes of one record.
pub(super) const RECORD_BYTES: usize = 1 + PIXELS;
/// Records of one file.
pub(super) const FILE_RECORDS: u32 = 10_000;
/// Bytes of one file.
pub(super) const FILE_BYTES: u64 = FILE_RECORDS as u64 * RECORD_BYTES as u64;
/// Read buffer for a pass through a file.
const BUFFER_BYTES: usize = 64 * 1024;

type Record = [u8; RECORD_BYTES];

/// The files of a split.
fn files(split: Split) -> &'static [&'static str] {
    match split {
        Split::Train => &FILES[..5],
        Split::Test => &FILES[5..],
    }
}

/// Where the six files are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Location {
    /// A folder that holds them.
    Folder(PathBuf),
    /// A `.tar.gz` archive.
    Archive(PathBuf),
}

impl Location {
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let location = Self::at(path)?;
        match &location {
            Self::Folder(folder) => {
                for name in FILES {
                    let file = folder.join(name);
                    let bytes = size(&file)?.ok_or_else(|| DataError::Missing { file: file.clone() })?;
                    check_size(&file, bytes)?;
                }
            }
            Self::Archive(path) => {
                let broken = |source| DataError::Archive { path: path.clone(), source };
                let mut archive = archive(path)?;
                archive.entries().map_err(broken)?.next().transpose().map_err(broken)?;
            }
        }
        Ok(location)
    }

    fn at(path: &Path) -> Result<Self, DataError> {
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => {
                let inner = path.join(FOLDER);
                Ok(Self::Folder(if inner.is_dir() { inner } else { path.to_owned() }))
            }
            Ok(_) => Ok(Self::Archive(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(DataError::NotFound { path: path.to_owned() })
            }
            Err(error) => Err(DataError::io("open", path)(error)),
        }
    }

    /// Whose images are here, if they are one node's only.
    pub(super) fn piece(&self) -> Result<Option<Piece>, DataError> {
        let (path, note) = match self {
            Self::Folder(folder) => {
                let path = folder.join(PIECE_FILE);
                let note = size(&path)?.map(|_| File::open(&path).and_then(note));
                (path.clone(), note.transpose().map_err(DataError::io("read", &path))?)
            }
            Self::Archive(path) => (path.join(PIECE_FILE), note_of_archive(path)?),
        };
        let parse = |note: Vec<u8>| serde_json::from_slice(&note);
        note.map(parse).transpose().map_err(|source| DataError::PieceUnreadable { path, source })
    }

    pub(super) fn labels(&self, split: Split) -> Result<Vec<u8>, DataError> {
        let mut labels = vec![0; split.examples() as usize];
        self.scan(split, |index, record| labels[index as usize] = record[0])?;
        Ok(labels)
    }

    /// `indices` are in range.
    pub(super) fn read(&self, split: Split, indices: &[u32]) -> Result<Examples, DataError> {
        // In the order of the file, so that each file is opened once and read forwards.
        let mut wanted: Vec<(u32, usize)> = indices.iter().copied().zip(0..).collect();
        wanted.sort_unstable();
        let (mut labels, mut pixels) = (vec![0; indices.len()], vec![0; indices.len() * PIXELS]);
        let mut keep = |position: usize, record: &Record| {
            labels[position] = record[0];
            pixels[position * PIXELS..][..PIXELS].copy_from_slice(&record[1..]);
        };
        match self {
            Self::Folder(folder) => read_records(folder, split, &wanted, keep)?,
            Self::Archive(_) if wanted.is_empty() => {}
            Self::Archive(_) => {
                self.scan(split, |index, record| {
                    let start = wanted.partition_point(|(other, _)| *other < index);
                    let same = wanted[start..].iter().take_while(|(other, _)| *other == index);
                    same.for_each(|(_, position)| keep(*position, record));
                })?;
            }
        }
        Examples::new(labels, pixels)
    }

    /// Calls `each(index, record)` for every example of a split once and checks all labels. An archive's files come in the
    /// archive's order.
    fn scan(&self, split: Split, mut each: impl FnMut(u32, &Record)) -> Result<(), DataError> {
        match self {
            Self::Folder(folder) => {
                for (number, name) in files(split).iter().enumerate() {
                    let path = folder.join(name);
                    let file = File::open(&path).map_err(DataError::io("open", &path))?;
                    let first = number as u32 * FILE_RECORDS;
                    let fail = DataError::io("read", &path);
                    scan_records(
                        BufReader::with_capacity(BUFFER_BYTES, file),
                        &path,
                        fail,
                        |record, bytes| {
                            each(first + record, bytes);
                        },
                    )?;
                }
                Ok(())
            }
            Self::Archive(path) => scan_archive(path, split, each),
        }
    }
}

fn note(from: impl Read) -> io::Result<Vec<u8>> {
    let mut note = Vec::new();
    from.take(MAX_NOTE_BYTES).read_to_end(&mut note)?;
    Ok(note)
}

fn note_of_archive(path: &Path) -> Result<Option<Vec<u8>>, DataError> {
    let broken = |source| DataError::Archive { path: path.to_owned(), source };
    let mut archive = archive(path)?;
    let first = archive.entries().map_err(broken)?.next().transpose().map_err(broken)?;
    let is_note = |entry: &tar::Entry<'_, _>| {
        entry.path().is_ok_and(|path| path.file_name().is_some_and(|name| name == PIECE_FILE))
    };
    first.filter(is_note).map(note).transpose().map_err(broken)
}

/// Size of a file, or none if there is no such file.
fn size(path: &Path) -> Result<Option<u64>, DataError> {
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DataError::io("look at", path)(error)),
    }
}

fn check_size(file: &Path, bytes: u64) -> Result<(), DataError> {
    match bytes.cmp(&FILE_BYTES) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(truncated(file, bytes)),
        std::cmp::Ordering::Greater => Err(DataError::TooLong { file: file.to_owned(), bytes }),
    }
}

fn truncated(file: &Path, bytes: u64) -> DataError {
    DataError::Truncated { file: file.to_owned(), bytes, record: bytes / RECORD_BYTES as u64 }
}

fn check_label(file: &Path, record: u32, bytes: &Record) -> Result<(), DataError> {
    match bytes[0] {
        0..=9 => Ok(()),
        label => Err(DataError::Label { file: file.to_owned(), record: record.into(), label }),
    }
}

/// Reads single records of a folder's files; `wanted` is sorted by index and says where each one goes.
fn read_records(
    folder: &Path,
    split: Split,
    wanted: &[(u32, usize)],
    mut keep: impl FnMut(usize, &Record),
) -> Result<(), DataError> {
    let mut bytes = [0; RECORD_BYTES];
    for group in wanted.chunk_by(|a, b| a.0 / FILE_RECORDS == b.0 / FILE_RECORDS) {
        let path = folder.join(files(split)[(group[0].0 / FILE_RECORDS) as usize]);
        let file = File::open(&path).map_err(DataError::io("open", &path))?;
        for (index, position) in group {
            let record = index % FILE_RECORDS;
            match file.read_exact_at(&mut bytes, u64::from(record) * RECORD_BYTES as u64) {
                Ok(()) => check_label(&path, record, &bytes)?,
                // It was complete when it was opened, so it shrank.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(truncated(&path, size(&path)?.unwrap_or(0)));
                }
                Err(error) => return Err(DataError::io("read", &path)(error)),
            }
            keep(*position, &bytes);
        }
    }
    Ok(())
}

/// Reads the 10,000 records of a file from `reader`.
fn scan_records(
    mut reader: impl Read,
    file: &Path,
    fail: impl FnOnce(io::Error) -> DataError,
    mut each: impl FnMut(u32, &Record),
) -> Result<(), DataError> {
    let mut bytes = [0; RECORD_BYTES];
    for record in 0..FILE_RECORDS {
        match reader.read_exact(&mut bytes) {
            Ok(()) => check_label(file, record, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(truncated(file, u64::from(record) * RECORD_BYTES as u64));
            }
            Err(error) => return Err(fail(error)),
        }
        each(record, &bytes);
    }
    Ok(())
}

fn archive(path: &Path) -> Result<tar::Archive<impl Read + use<>>, DataError> {
    let file = File::open(path).map_err(DataError::io("open", path))?;
    Ok(tar::Archive::new(GzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, file))))
}

/// The known name of an archive's entry.
fn entry_name<R: Read>(entry: &tar::Entry<'_, R>) -> Option<&'static str> {
    let path = entry.path().ok()?;
    let name = path.file_name()?;
    FILES.into_iter().chain([META]).find(|known| name == *known)
}

fn scan_archive(path: &Path, split: Split, mut each: impl FnMut(u32, &Record)) -> Result<(), DataError> {
    let broken = |source| DataError::Archive { path: path.to_owned(), source };
    let names = files(split);
    let mut missing: Vec<usize> = (0..names.len()).collect();
    for entry in archive(path)?.entries().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let name = entry_name(&entry);
        let Some(at) = missing.iter().position(|number| name == Some(names[*number])) else { continue };
        let number = missing.remove(at);
        let file = path.join(names[number]);
        check_size(&file, entry.size())?;
        let first = number as u32 * FILE_RECORDS;
        scan_records(BufReader::with_capacity(BUFFER_BYTES, entry), &file, broken, |record, bytes| {
            each(first + record, bytes);
        })?;
        if missing.is_empty() {
            break;
        }
    }
    if let Some(number) = missing.first() {
        return Err(DataError::Missing { file: path.join(names[*number]) });
    }
    Ok(())
}

/// One file of the data set, as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStatus {
    /// Name within the folder.
    pub name: &'static str,
    /// Its size in bytes; none: it is missing.
    pub bytes: Option<u64>,
    /// Size it must have; none: any will do, and it may be missing.
    pub expected_bytes: Option<u64>,
}

impl FileStatus {
    /// Whether it is there and of the right size, or not needed.
    pub fn is_complete(&self) -> bool {
        self.expected_bytes.is_none() || self.bytes == self.expected_bytes
    }
}

/// What is found at a path that should hold CIFAR-10.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The folder or archive looked at.
    pub location: Location,
    /// The six files in the order of their examples, then the optional `batches.meta.txt`.
    pub files: Vec<FileStatus>,
}

impl Status {
    /// Whether every file is complete.
    pub fn is_complete(&self) -> bool {
        self.files.iter().all(FileStatus::is_complete)
    }
}

/// Looks at CIFAR-10's files at `path` without reading the images. An archive is decompressed once, which takes
/// seconds; one that breaks off is reported up to there.
///
/// # Errors
/// [`DataError::NotFound`], [`DataError::Archive`] if the file is no archive at all, or [`DataError::Io`].
pub fn status(path: &Path) -> Result<Status, DataError> {
    let location = Location::at(path)?;
    let names = FILES.into_iter().chain([META]);
    let mut files: Vec<FileStatus> = names
        .map(|name| FileStatus { name, bytes: None, expected_bytes: (name != META).then_some(FILE_BYTES) })
        .collect();
    match &location {
        Location::Folder(folder) => {
            for file in &mut files {
                file.bytes = size(&folder.join(file.name))?;
            }
        }
        Location::Archive(archive) => {
            Location::open(archive)?;
            status_of_archive(archive, &mut files)?;
        }
    }
    Ok(Status { location, files })
}

/// Fills in the sizes of an archive's files, counting what can really be read.
fn status_of_archive(path: &Path, files: &mut [FileStatus]) -> Result<(), DataError> {
    let mut archive = archive(path)?;
    for entry in archive.entries().map_err(|source| DataError::Archive { path: path.to_owned(), source })? {
        let Ok(mut entry) = entry else { break };
        let name = entry_name(&entry);
        if let Some(file) = files.iter_mut().find(|file| Some(file.name) == name) {
            let mut counted = Count(0);
            let whole = io::copy(&mut entry, &mut counted);
            file.bytes = Some(counted.0);
            if whole.is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// Counts what is written to it.
struct Count(u64);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "cifar_tests.rs"]
mod tests;
