//! Counts for people, and as CSV. Pure.
