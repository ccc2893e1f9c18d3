//! What disturbs others, or is disturbed by them: run by itself, after the rest.

mod capacity;
mod detached;
mod home_down;
mod installation;
mod many;
mod restarts;
mod writer;
