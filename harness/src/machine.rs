//! The machine and the program behind a result.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::meter::field_bytes;

/// The host of the controller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Host name.
    pub host: String,
    /// Kernel name, release and version.
    pub kernel: String,
    /// Instruction set.
    pub architecture: String,
    /// Processor model, as the kernel names it.
    pub cpu_model: String,
    /// Processors this process may use.
    pub cpu_cores: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl Machine {
    /// This machine; what cannot be learned is empty or 0.
    #[must_use]
    pub fn this() -> Self {
        let uname = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        Self {
            host: file_name(&text(uname.nodename())),
            kernel: format!("{} {} {}", text(uname.sysname()), text(uname.release()), text(uname.version())),
            architecture: text(uname.machine()),
            cpu_model: cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cpu_cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: field_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:"),
        }
    }
}

/// A host name as part of a file name.
fn file_name(host: &str) -> String {
    let name: String =
        host.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect();
    if name.is_empty() { "host".into() } else { name }
}

/// x86 says "model name"; ARM boards say "Model" or only "Hardware".
fn cpu_model(cpuinfo: &str) -> String {
    let value = |name: &str| {
        let pairs = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        pairs.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
    };
    value("model name").or_else(|| value("Model")).or_else(|| value("Hardware")).unwrap_or_default()
}

/// This program, and the source it comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Version of the harness.
    pub version: String,
    /// Compiler that is installed where the run was made (`rustc --version`); none if there is no compiler.
    pub rustc: Option<String>,
    /// Whether it was built without optimisation for release.
    pub debug_build: bool,
    /// Commit of the working tree around the program's file or, failing that, the current folder; none outside of one.
    pub git_revision: Option<String>,
    /// Whether that working tree had changes that are not committed.
    pub git_dirty: Option<bool>,
}

impl Program {
    /// This program.
    #[must_use]
    pub fn this() -> Self {
        let own_folder = std::env::current_exe().ok().and_then(|file| file.parent().map(Path::to_path_buf));
        let current = Some(Path::new(".").to_path_buf());
        let git = |words: &[&str]| {
            let folders = [&own_folder, &current].into_iter().flatten();
            folders.into_iter().find_map(|folder| said(Command::new("git").arg("-C").arg(folder).args(words)))
        };
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            rustc: said(Command::new("rustc").arg("--version")),
            debug_build: cfg!(debug_assertions),
            git_revision: git(&["rev-parse", "HEAD"]),
            git_dirty: git(&["status", "--porcelain"]).map(|changes| !changes.is_empty()),
        }
    }
}

/// What a command says, if it can be run and succeeds.
fn said(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::this();
        assert!(!machine.host.is_empty() && machine.kernel.starts_with("Linux "), "{machine:?}");
        assert!(machine.cpu_cores > 0 && machine.memory_bytes > 1_000_000, "{machine:?}");
        assert_eq!(Program::this().version, env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn names_are_made_safe_and_models_found() {
        assert_eq!(file_name("pi.local/1"), "pi-local-1");
        assert_eq!(file_name(""), "host");
        assert_eq!(cpu_model("processor\t: 0\nModel\t\t: Raspberry Pi 4\n"), "Raspberry Pi 4");
        assert_eq!(cpu_model(""), "");
        assert_eq!(said(&mut Command::new("/nonexistent/program")), None);
    }
}
