//! Several nodes and controllers as processes of this machine: each node with its own pool, socket and directory, the
//! controllers separate. The guarantees of one node must hold for all of them, whichever is unreachable.

mod auto;
mod bounds;
mod calls;
mod harness;
mod kubelet;
mod lives;
mod lost;
mod mixed;
mod network;
mod people;
mod rolling;
mod silent;
mod skew;
mod two_controllers;
mod wire;
