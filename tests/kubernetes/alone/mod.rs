//! Tests that disturb others, or are disturbed by them: run one at a time, after the rest.

mod capacity;
mod detached;
mod home_down;
mod installation;
mod many;
mod restarts;
mod writer;
