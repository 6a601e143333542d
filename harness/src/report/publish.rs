//! A report's files on disk: all of them or none, in place of an earlier report and of nothing else.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

use super::File;
use crate::exit::Usage;

/// Writes `files` to the folder `out`, which must not exist, be empty, or hold an earlier report.
///
/// # Errors
/// [`Usage`] if the folder holds something else; otherwise what cannot be written.
pub fn publish(out: &Path, files: &[File]) -> anyhow::Result<()> {
    check(out)?;
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = || format!("cannot write the report {}", out.display());
    fs::create_dir_all(parent).with_context(failed)?;
    let fresh = tempfile::Builder::new().prefix(".report-").tempdir_in(parent).with_context(failed)?;
    for (name, bytes) in files {
        let file = fresh.path().join(name);
        fs::create_dir_all(file.parent().unwrap_or(fresh.path())).with_context(failed)?;
        fs::write(&file, bytes).with_context(failed)?;
    }
    let readable: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(fresh.path(), readable).with_context(failed)?;
    if out.exists() {
        fs::remove_dir_all(out).with_context(failed)?;
    }
    fs::rename(fresh.keep(), out).with_context(failed)
}

/// Whether `out` may be written, or replaced.
///
/// # Errors
/// [`Usage`] if it holds something that is no report.
pub fn check(out: &Path) -> anyhow::Result<()> {
    let refuse = |wrong: &str| {
        Err(Usage::option("--out", out.display(), wrong, "name a new folder, or that of an earlier report")
            .into())
    };
    match fs::read_dir(out) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(_) => refuse("is no folder that can be read"),
        Ok(mut entries) => {
            let report = out.join("report.md").exists() && out.join("index.html").exists();
            if report || entries.next().is_none() {
                Ok(())
            } else {
                refuse("holds something that is no report")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_report_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a/report");
        let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        publish(&out, &[file("index.html", "1"), file("report.md", "1"), file("figures/old.svg", "1")])
            .unwrap();
        publish(&out, &[file("index.html", "2"), file("report.md", "2")]).unwrap();
        assert_eq!(fs::read_to_string(out.join("index.html")).unwrap(), "2");
        assert!(!out.join("figures").exists());
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("thesis.tex"), "").unwrap();
        let error = publish(&other, &[file("index.html", "2")]).unwrap_err();
        assert!(error.is::<Usage>() && other.join("thesis.tex").exists(), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary folder is left");
    }
}
