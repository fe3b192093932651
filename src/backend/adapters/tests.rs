//! Tests of adapter files.
