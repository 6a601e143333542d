//! CIFAR-10 on disk, for `harness data`: download, check, unpack. What a batch file means is known to
//! `workloads::federated` alone; its functions are reached through [`status`], [`check`] and [`synthesize`].

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};
use workloads::federated::shard::Piece;
use workloads::federated::{self, DataError, Source, Split, Status};

use crate::exit::Usage;

pub use workloads::federated::{ARCHIVE_SHA256 as OFFICIAL_SHA256, ARCHIVE_URL as OFFICIAL_URL};

/// Folder of the batch files, inside the archive and on disk.
pub const BATCHES_DIR: &str = "cifar-10-batches-bin";
/// Largest archive that is downloaded, in bytes. The official one has 170 MB.
pub const MAX_ARCHIVE_BYTES: u64 = 512 * 1024 * 1024;
/// Most bytes that are unpacked. The official archive holds 184 MB.
pub const MAX_UNPACKED_BYTES: u64 = 1024 * 1024 * 1024;

/// Seed of the synthetic set on disk.
const SYNTHETIC_SEED: u64 = 0;
const CHUNK_BYTES: usize = 64 * 1024;

/// What of CIFAR-10 is at `path`, a folder or an archive.
///
/// # Errors
/// If there is nothing that could be it.
pub fn status(path: &Path) -> Result<Status, Usage> {
    federated::status(path).map_err(|error| Usage(format!("{error}; name a folder or archive with CIFAR-10")))
}

/// Checks that a run can use the data at `path`: every file complete, every label a class, and if it has the images of one
/// shard only, that this is what each of `pieces` is. Reads the labels only.
///
/// # Errors
/// One line that names the first problem and a remedy.
pub fn check(path: &Path, pieces: &[Piece]) -> Result<(), Usage> {
    let usage = |error: DataError| {
        let remedy = match error {
            DataError::OtherPiece { .. } | DataError::PieceUnreadable { .. } => {
                "see `harness data shards --help`"
            }
            _ => "see `harness data status`, or get the data with `harness data fetch DIR`",
        };
        Usage(format!("--data {}: {error}; {remedy}", path.display()))
    };
    let source = Source::open(path).map_err(usage)?;
    pieces.iter().try_for_each(|piece| source.check_piece(*piece)).map_err(usage)?;
    for split in [Split::Train, Split::Test] {
        source.labels(split).map_err(usage)?;
    }
    Ok(())
}

/// Writes the synthetic set in CIFAR-10's layout; returns the folder of the batch files.
///
/// # Errors
/// If it is there already, or cannot be written.
pub fn synthesize(dir: &Path) -> anyhow::Result<PathBuf> {
    match federated::write_synthetic(dir, SYNTHETIC_SEED, false) {
        Err(DataError::Exists { file }) => {
            let words = format!(
                "{} exists and would be overwritten; remove it or name another folder",
                file.display()
            );
            Err(Usage(words).into())
        }
        written => Ok(written?),
    }
}

/// What to download, and how to know that it is right.
#[derive(Debug, Clone)]
pub struct Download {
    /// Address of the archive.
    pub url: String,
    /// Its SHA-256, 64 hexadecimal digits.
    pub sha256: String,
    /// Most bytes to accept.
    pub max_bytes: u64,
}

/// Downloads and unpacks into `dir`; returns the folder of the batch files. `progress` is told the bytes so far and the
/// total, if the server names it. The archive has no name on disk while it is downloaded, so nothing is left behind
/// even if the process is killed.
///
/// # Errors
/// Bad input, a failed download, a wrong checksum, or an archive without batch files.
pub fn fetch(
    download: &Download,
    dir: &Path,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> anyhow::Result<PathBuf> {
    check_download(download)?;
    let target = free_target(dir)?;
    let created = !dir.exists();
    fs::create_dir_all(dir)
        .map_err(|error| Usage(format!("{}: {error}; name a folder that can be written", dir.display())))?;
    let outcome = fetch_into(download, dir, &target, progress);
    if outcome.is_err() && created {
        // Only if empty: what else is in there is not ours.
        let _ = fs::remove_dir(dir);
    }
    outcome.map(|()| target)
}

fn fetch_into(
    download: &Download,
    dir: &Path,
    target: &Path,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> anyhow::Result<()> {
    let mut archive =
        tempfile::tempfile_in(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
    let actual = stream(download, &mut archive, progress)?;
    if actual != download.sha256.to_ascii_lowercase() {
        let (url, expected) = (&download.url, &download.sha256);
        bail!("{url} has the wrong checksum: SHA-256 expected {expected}, actual {actual}; nothing was kept");
    }
    archive.rewind()?;
    install(dir, target, |folder| unpack(archive, folder))
}

fn check_download(download: &Download) -> Result<(), Usage> {
    let Download { url, sha256, .. } = download;
    if !(url.starts_with("http://") || url.starts_with("https://")) {
        return Err(Usage::option(
            "--url",
            url,
            "not an http or https address",
            "use for example the default",
        ));
    }
    if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Usage::option("--sha256", sha256, "not a SHA-256", "use 64 hexadecimal digits"));
    }
    Ok(())
}

/// The folder that will hold the batch files, which must not exist.
fn free_target(dir: &Path) -> Result<PathBuf, Usage> {
    let target = dir.join(BATCHES_DIR);
    match fs::symlink_metadata(&target) {
        Ok(_) => {
            Err(Usage(format!("{} is there already; remove it or name another folder", target.display())))
        }
        Err(_) => Ok(target),
    }
}

/// Lets `fill` write into a temporary folder, which gets its final name only if that succeeds.
fn install(dir: &Path, target: &Path, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let writing = || format!("cannot write to {}", dir.display());
    fs::create_dir_all(dir).with_context(writing)?;
    let temporary = tempfile::Builder::new().prefix(".unpacking-").tempdir_in(dir).with_context(writing)?;
    let folder = temporary.path().join(BATCHES_DIR);
    fs::create_dir(&folder).with_context(writing)?;
    fill(&folder)?;
    fs::rename(&folder, target).with_context(|| format!("cannot name {}", target.display()))
}

/// Streams the archive into `file`; returns its SHA-256 in hexadecimal.
fn stream(
    download: &Download,
    file: &mut File,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> anyhow::Result<String> {
    let failed = || format!("cannot download {}", download.url);
    let mut response = agent(&download.url).get(&download.url).call().with_context(failed)?;
    let total = response.body().content_length();
    let too_large = |bytes: u64| bytes > download.max_bytes;
    if total.is_some_and(too_large) {
        bail!("{} is larger than the limit of {} bytes", download.url, download.max_bytes);
    }
    let mut body = response.body_mut().as_reader();
    let (mut hash, mut done, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK_BYTES]);
    loop {
        progress(done, total);
        let read = body.read(&mut chunk).with_context(failed)?;
        if read == 0 {
            break;
        }
        done += read as u64;
        if too_large(done) {
            bail!("{} is larger than the limit of {} bytes", download.url, download.max_bytes);
        }
        hash.update(&chunk[..read]);
        file.write_all(&chunk[..read]).context("cannot keep what was downloaded")?;
    }
    if let Some(total) = total.filter(|total| *total != done) {
        bail!("{} ended after {done} of {total} bytes; try again", download.url);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn agent(url: &str) -> ureq::Agent {
    let mut config = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_recv_body(Some(Duration::from_secs(2 * 3600)));
    let host = url.split("//").nth(1).unwrap_or("").split(['/', ':']).next().unwrap_or("");
    if host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) {
        config = config.proxy(None);
    }
    config.build().new_agent()
}

/// Unpacks the batch files of `archive` (.tar.gz) into the empty `folder`; everything else in it is ignored.
///
/// # Errors
/// If it is no archive, has no batch file, or unpacks to over [`MAX_UNPACKED_BYTES`]; what was unpacked until then stays.
pub fn unpack(archive: impl Read, folder: &Path) -> anyhow::Result<()> {
    let unreadable = "the archive has the right checksum, but cannot be unpacked";
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(io::BufReader::new(archive)));
    let (mut files, mut left) = (0, MAX_UNPACKED_BYTES);
    for entry in archive.entries().context(unreadable)? {
        let mut entry = entry.context(unreadable)?;
        let path = entry.path().context(unreadable)?.into_owned();
        let plain = path.parent() == Some(Path::new(BATCHES_DIR)) && entry.header().entry_type().is_file();
        let Some(name) = path.file_name().filter(|_| plain) else { continue };
        let mut file = File::create(folder.join(name)).context("cannot write a batch file")?;
        let copied = io::copy(&mut (&mut entry).take(left + 1), &mut file).context(unreadable)?;
        left = left
            .checked_sub(copied)
            .with_context(|| format!("the archive unpacks to over {MAX_UNPACKED_BYTES} bytes"))?;
        files += 1;
    }
    if files == 0 {
        bail!("the archive has the right checksum, but no files in {BATCHES_DIR}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    pub(crate) fn small_archive() -> Vec<u8> {
        let mut tar =
            tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (name, bytes) in [
            ("cifar-10-batches-bin/data_batch_1.bin", &b"batch"[..]),
            ("cifar-10-batches-bin/deeper/no.bin", b"deeper"),
            ("elsewhere/no.bin", b"elsewhere"),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, name, bytes).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    fn sha256(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Answers one request with `head` and `body`; returns the address.
    fn serve_once(head: String, body: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/archive.tar.gz", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            let _ = stream.write_all(&body);
        });
        url
    }

    fn ok(body: &[u8]) -> String {
        serve_once(
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len()),
            body.to_vec(),
        )
    }

    fn fetch_from(url: String, sha256: String, dir: &Path) -> anyhow::Result<PathBuf> {
        fetch(&Download { url, sha256, max_bytes: 100_000 }, dir, &mut |_, _| {})
    }

    #[test]
    fn an_archive_is_downloaded_checked_and_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("data");
        let body = small_archive();
        let folder = fetch_from(ok(&body), sha256(&body).to_uppercase(), &into).unwrap();
        assert_eq!(folder, into.join(BATCHES_DIR));
        assert_eq!(fs::read(folder.join("data_batch_1.bin")).unwrap(), b"batch");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "only files right below the folder");
        assert_eq!(fs::read_dir(&into).unwrap().count(), 1, "nothing temporary is left");
        let again = fetch_from("http://127.0.0.1:1/".into(), sha256(&body), &into).unwrap_err();
        assert!(again.to_string().contains("is there already") && again.is::<Usage>());
    }

    #[test]
    fn a_wrong_checksum_names_both_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("data");
        let body = small_archive();
        let error = fetch_from(ok(&body), "0".repeat(64), &into).unwrap_err().to_string();
        assert!(error.contains(&"0".repeat(64)) && error.contains(&sha256(&body)), "{error}");
        assert!(!into.exists());
    }

    #[test]
    fn failed_downloads_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("data");
        let head =
            |length: u64| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        let cases = [
            (serve_once("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into(), Vec::new()), "404"),
            (serve_once(head(1000), b"short".to_vec()), "cannot download"),
            (serve_once(head(1_000_000), Vec::new()), "larger than the limit"),
            (
                serve_once("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".into(), vec![0; 200_000]),
                "larger than the limit",
            ),
            ("http://127.0.0.1:1/nobody".into(), "cannot download"),
        ];
        for (url, expected) in cases {
            let error = format!("{:#}", fetch_from(url, "0".repeat(64), &into).unwrap_err());
            assert!(error.contains(expected), "{error}");
            assert!(!into.exists(), "{expected}");
        }
    }

    #[test]
    fn an_archive_that_is_none_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for body in [&b"no archive"[..], b""] {
            let error = format!("{:#}", fetch_from(ok(body), sha256(body), dir.path()).unwrap_err());
            assert!(error.contains("right checksum"), "{error}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn bad_input_is_usage() {
        let dir = tempfile::tempdir().unwrap();
        for (url, sha256) in [("ftp://x/", "0".repeat(64)), ("http://127.0.0.1:1/", "12".into())] {
            assert!(fetch_from(url.into(), sha256, dir.path()).unwrap_err().is::<Usage>());
        }
    }

    #[test]
    fn status_tells_missing_from_truncated() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("test_batch.bin"), b"short").unwrap();
        let status = status(dir.path()).unwrap();
        assert!(!status.is_complete());
        let bytes: Vec<_> =
            status.files.iter().filter(|file| file.expected_bytes.is_some()).map(|file| file.bytes).collect();
        assert_eq!(bytes, [None, None, None, None, None, Some(5)]);
        assert!(check(dir.path(), &[]).unwrap_err().to_string().starts_with("--data "));
        assert!(check(&dir.path().join("nowhere"), &[]).unwrap_err().to_string().contains("nowhere"));
    }
}
