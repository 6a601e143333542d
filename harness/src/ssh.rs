//! How a host is reached over OpenSSH: the words of the command, and what its failures mean. Pure.
//!
//! ssh joins the words of a remote command to one line for the remote shell, so each is quoted here. Everything else (keys,
//! agents, jump hosts, known hosts) is the user's own configuration; nobody is asked for a password.

use std::path::Path;

use crate::cli::shell_line;
use crate::place::inventory::Host;

/// Exit code of ssh itself.
const SSH_FAILED: i32 = 255;
/// Exit codes of a remote shell: the program cannot be executed; there is none.
const CANNOT_EXECUTE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Seconds until a host that does not answer is given up, before and after the connection was made.
const CONNECT_TIMEOUT_S: u32 = 10;
const ALIVE_INTERVAL_S: u32 = 5;
const ALIVE_COUNT: u32 = 3;

/// The arguments of `ssh` that run the program with `words` on `host`.
#[must_use]
pub fn arguments(host: &Host, config: Option<&Path>, words: &[&str]) -> Vec<String> {
    let mut arguments: Vec<String> = vec!["-T".into()];
    if let Some(config) = config {
        arguments.extend(["-F".into(), config.display().to_string()]);
    }
    for option in [
        "BatchMode=yes".into(),
        format!("ConnectTimeout={CONNECT_TIMEOUT_S}"),
        format!("ServerAliveInterval={ALIVE_INTERVAL_S}"),
        format!("ServerAliveCountMax={ALIVE_COUNT}"),
    ] {
        arguments.extend(["-o".into(), option]);
    }
    if let Some(user) = &host.user {
        arguments.extend(["-l".into(), user.clone()]);
    }
    if let Some(port) = host.port {
        arguments.extend(["-p".into(), port.to_string()]);
    }
    let remote: Vec<String> =
        std::iter::once(host.program.as_str()).chain(words.iter().copied()).map(Into::into).collect();
    arguments.extend(["--".into(), host.destination.clone(), format!("exec {}", shell_line(&remote))]);
    arguments
}

/// As [`arguments`], over a connection of its own: what runs on the host shall end with this ssh, not with a connection that
/// several share.
#[must_use]
pub fn session_arguments(host: &Host, config: Option<&Path>, words: &[&str]) -> Vec<String> {
    let mut all: Vec<String> =
        ["-o", "ControlMaster=no", "-o", "ControlPath=none"].map(String::from).to_vec();
    all.extend(arguments(host, config, words));
    all
}

/// What is wrong, and what helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What is wrong.
    pub wrong: String,
    /// What helps.
    pub remedy: String,
}

/// What it means that ssh to `host` ended with this exit code (none: by a signal) after these words on standard error.
#[must_use]
pub fn trouble(host: &Host, code: Option<i32>, said: &str) -> Trouble {
    let said = said.trim();
    let last = said.lines().next_back().unwrap_or("it said nothing").trim();
    let by_hand = {
        let mut words: Vec<String> = vec!["ssh".into()];
        words.extend(host.port.map(|port| format!("-p {port}")));
        words
            .push(host.user.as_ref().map_or_else(String::new, |user| format!("{user}@")) + &host.destination);
        words.join(" ")
    };
    let means = |wrong: &str, remedy: String| Trouble { wrong: format!("{wrong} ({last})"), remedy };
    let program = &host.program;
    match code {
        Some(SSH_FAILED) if said.contains("REMOTE HOST IDENTIFICATION HAS CHANGED") => means(
            "its host key is not the one that is known",
            format!("find out why; if that is in order: ssh-keygen -R {}", host.destination),
        ),
        Some(SSH_FAILED) if said.contains("Host key verification failed") => {
            means("its host key is not known", format!("connect once by hand and accept it: {by_hand}"))
        }
        Some(SSH_FAILED) if said.contains("Permission denied") => {
            means("it does not let us in", format!("give it your key: ssh-copy-id {}", &by_hand[4..]))
        }
        Some(SSH_FAILED) => means("it cannot be reached", format!("see whether it is up: {by_hand}")),
        Some(CANNOT_EXECUTE) if said.contains("Permission denied") => {
            means(&format!("{program} cannot be executed"), format!("chmod a+x {program}"))
        }
        // A shell takes a binary that its kernel does not know for a script.
        Some(code) if code == CANNOT_EXECUTE || said.contains("Syntax error") => means(
            &format!("{program} is for another architecture"),
            "build for it (scripts/cross-build) and copy that binary".into(),
        ),
        Some(NOT_FOUND) => means(
            &format!("there is no {program}"),
            "copy the binary there, or set harness_program in the inventory".into(),
        ),
        Some(2) if said.contains("unrecognized subcommand") => means(
            "its program is of another version",
            format!("copy this one there: {}", env!("CARGO_PKG_VERSION")),
        ),
        _ => means("its program failed", format!("try it by hand: {by_hand} {program} --version")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::inventory::parse;

    fn host(line: &str) -> Host {
        parse(line, false, None).unwrap().remove(0)
    }

    #[test]
    fn the_user_s_own_configuration_holds_and_nothing_is_a_shell_s() {
        let host = host(
            "pi1 ansible_host=10.0.0.1 ansible_user=pi ansible_port=2222 harness_program='/opt/my dir/$(x)'",
        );
        let words = arguments(&host, Some(Path::new("/c")), &["probe"]);
        assert_eq!(words[..3], ["-T", "-F", "/c"]);
        assert!(words.windows(2).any(|pair| pair == ["-o", "BatchMode=yes"]));
        let end = ["-l", "pi", "-p", "2222", "--", "10.0.0.1", "exec '/opt/my dir/$(x)' probe"];
        assert_eq!(words[words.len() - end.len()..], end);
    }

    #[test]
    fn failures_are_told_apart() {
        let host = host("pi1 ansible_host=10.0.0.1 ansible_user=pi ansible_port=2222");
        for (code, said, wrong, remedy) in [
            (255, "Host key verification failed.", "its host key is not known", "ssh -p 2222 pi@10.0.0.1"),
            (
                255,
                "@ REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
                "not the one",
                "ssh-keygen -R 10.0.0.1",
            ),
            (
                255,
                "pi@10.0.0.1: Permission denied (publickey).",
                "let us in",
                "ssh-copy-id -p 2222 pi@10.0.0.1",
            ),
            (
                255,
                "ssh: connect to host 10.0.0.1 port 22: Connection refused",
                "cannot be reached (ssh: connect",
                "is up",
            ),
            (
                127,
                "sh: 1: exec: /usr/local/bin/harness: not found",
                "there is no /usr/local/bin/harness",
                "harness_program",
            ),
            (126, "sh: 1: exec: /usr/local/bin/harness: Permission denied", "cannot be executed", "chmod"),
            (
                126,
                "sh: cannot execute binary file: Exec format error",
                "another architecture",
                "scripts/cross-build",
            ),
            (
                2,
                "/usr/local/bin/harness: 1: Syntax error: \"(\" unexpected",
                "another architecture",
                "scripts/cross-build",
            ),
            (2, "error: unrecognized subcommand 'probe'", "another version", "copy this one"),
            (1, "", "its program failed (it said nothing)", "--version"),
        ] {
            let trouble = trouble(&host, Some(code), said);
            assert!(trouble.wrong.contains(wrong) && trouble.remedy.contains(remedy), "{said}: {trouble:?}");
        }
    }
}
