//! Partitions between controllers and homes: calls and replies that are late, lost or come twice. Real homes on real
//! pools, behind a proxy of the test; callers behave as the sidecars do.

mod direct;
mod histories;
mod proxy;
mod world;
