//! Reading CIFAR-10's layout: folder and archive agree, and each kind of damage has its error.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, Weak};

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use super::super::data::Source;
use super::super::synthetic::write_synthetic;
use super::*;

/// The synthetic set in files, which tests only read. Those that run at the same time share it, the last one removes it.
fn written() -> Arc<TempDir> {
    static WRITTEN: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    let mut shared = WRITTEN.lock().unwrap();
    shared.upgrade().unwrap_or_else(|| {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        write_synthetic(directory.path(), 3, false).unwrap();
        *shared = Arc::downgrade(&directory);
        directory
    })
}

/// A folder of six links to the written files, to be damaged.
fn links(written: &TempDir) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in FILES {
        std::os::unix::fs::symlink(written.path().join(FOLDER).join(name), directory.path().join(name))
            .unwrap();
    }
    directory
}

/// An archive of some of the written files, barely compressed for speed.
fn archive_of(written: &TempDir, names: &[&str]) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cifar-10-binary.tar.gz");
    let mut builder = tar::Builder::new(GzEncoder::new(File::create(&path).unwrap(), Compression::none()));
    for name in names {
        let inner = Path::new(FOLDER).join(name);
        builder.append_path_with_name(written.path().join(&inner), &inner).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap();
    (directory, path)
}

#[test]
fn folder_archive_and_generator_agree() {
    let written = written();
    let reversed: Vec<&str> = FILES.into_iter().rev().collect();
    let (_keep, archive) = archive_of(&written, &reversed);
    let outer = Source::open(written.path()).unwrap();
    let inner = Source::open(&written.path().join(FOLDER)).unwrap();
    let packed = Source::open(&archive).unwrap();
    let generated = Source::Synthetic { seed: 3 };
    assert!(generated.is_synthetic() && !outer.is_synthetic());
    for (split, indices) in
        [(Split::Train, &[49_999, 0, 10_000, 9_999, 25_123, 0][..]), (Split::Test, &[9_999, 5])]
    {
        let expected = generated.read(split, indices).unwrap();
        let labels = generated.labels(split).unwrap();
        for source in [&outer, &inner, &packed] {
            assert_eq!(source.read(split, indices).unwrap(), expected);
            assert_eq!(source.labels(split).unwrap(), labels);
            assert!(source.read(split, &[]).unwrap().is_empty());
        }
    }
    assert!(status(written.path()).unwrap().is_complete());
    assert!(status(&archive).unwrap().is_complete());
}

#[test]
fn missing_short_and_long_files_are_named() {
    let written = written();
    let folder = links(&written);
    let file = folder.path().join(FILES[2]);
    fs::remove_file(&file).unwrap();
    let error = Source::open(folder.path()).unwrap_err();
    assert!(matches!(&error, DataError::Missing { file: at } if *at == file), "{error}");

    fs::write(&file, vec![0; 3 * RECORD_BYTES + 100]).unwrap();
    let error = Source::open(folder.path()).unwrap_err();
    assert!(matches!(&error, DataError::Truncated { file: at, record: 3, .. } if *at == file), "{error}");
    let found = status(folder.path()).unwrap();
    assert!(!found.is_complete() && !found.files[2].is_complete() && found.files[1].is_complete());
    assert_eq!(found.files[2].bytes, Some(3 * RECORD_BYTES as u64 + 100));

    OpenOptions::new().write(true).open(&file).unwrap().set_len(FILE_BYTES + 1).unwrap();
    let error = Source::open(folder.path()).unwrap_err();
    assert!(matches!(&error, DataError::TooLong { file: at, .. } if *at == file), "{error}");

    let nowhere = folder.path().join("nowhere");
    assert!(matches!(Source::open(&nowhere), Err(DataError::NotFound { path }) if path == nowhere));
    assert!(matches!(status(&nowhere), Err(DataError::NotFound { .. })));
}

#[test]
fn a_wrong_label_is_found_where_it_is() {
    let written = written();
    let folder = links(&written);
    let file = folder.path().join(FILES[1]);
    fs::remove_file(&file).unwrap();
    fs::copy(written.path().join(FOLDER).join(FILES[1]), &file).unwrap();
    let handle = OpenOptions::new().write(true).open(&file).unwrap();
    handle.write_all_at(&[10], 17 * RECORD_BYTES as u64).unwrap();
    let source = Source::open(folder.path()).unwrap();
    for error in [source.labels(Split::Train).unwrap_err(), source.read(Split::Train, &[10_017]).unwrap_err()]
    {
        assert!(
            matches!(&error, DataError::Label { file: at, record: 17, label: 10 } if *at == file),
            "{error}"
        );
    }
    assert_eq!(source.read(Split::Train, &[10_016]).unwrap().len(), 1);

    // A file that shrinks after it was opened.
    handle.set_len(RECORD_BYTES as u64 * 5).unwrap();
    for error in [source.labels(Split::Train).unwrap_err(), source.read(Split::Train, &[10_016]).unwrap_err()]
    {
        assert!(matches!(error, DataError::Truncated { record: 5, .. }), "{error}");
    }
}

#[test]
fn archives_that_are_none_or_lack_something_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let fake = directory.path().join("fake.tar.gz");
    fs::write(&fake, b"<html>404</html>").unwrap();
    assert!(matches!(Source::open(&fake), Err(DataError::Archive { .. })));
    let mut encoder = GzEncoder::new(File::create(&fake).unwrap(), Compression::fast());
    encoder.write_all(&[7; 2_000]).unwrap();
    encoder.finish().unwrap();
    assert!(matches!(Source::open(&fake), Err(DataError::Archive { .. })));
    assert!(matches!(status(&fake), Err(DataError::Archive { .. })));

    let (_keep, archive) = archive_of(&written(), &FILES[5..]);
    let source = Source::open(&archive).unwrap();
    assert_eq!(source.read(Split::Test, &[1]).unwrap().len(), 1);
    let error = source.read(Split::Train, &[1]).unwrap_err();
    assert!(matches!(&error, DataError::Missing { file } if file.ends_with(FILES[0])), "{error}");

    // A download that broke off.
    OpenOptions::new().write(true).open(&archive).unwrap().set_len(20_000_000).unwrap();
    let error = source.labels(Split::Test).unwrap_err();
    assert!(matches!(error, DataError::Archive { .. } | DataError::Truncated { .. }), "{error}");
    let found = status(&archive).unwrap();
    assert!(found.files[5].bytes.is_some_and(|bytes| bytes < FILE_BYTES) && !found.is_complete());
}

#[test]
fn synthetic_files_are_not_overwritten_unasked() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join(FOLDER);
    fs::create_dir(&folder).unwrap();
    let file = folder.join(FILES[3]);
    fs::write(&file, "precious").unwrap();
    let error = write_synthetic(directory.path(), 1, false).unwrap_err();
    assert!(matches!(&error, DataError::Exists { file: at } if *at == file), "{error}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    write_synthetic(directory.path(), 1, true).unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 6);
    assert!(Source::open(directory.path()).is_ok());
}
