//! The `harness` command.
