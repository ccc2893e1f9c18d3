//! How many connections a port has at once, in all and of each role.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::refusal::{Reason, Refusal};
use super::role::RoleName;

/// Concurrent connections.
const MOST_CONNECTIONS: usize = 1024;
/// Concurrent connections of one role name, so that a faulty peer does not take the places of others.
const MOST_OF_ONE: usize = 64;

/// The current connections.
#[derive(Debug)]
pub(super) struct Table {
    most: usize,
    all: usize,
    /// By verified role name.
    named: BTreeMap<RoleName, usize>,
}

impl Table {
    /// With so many places.
    pub(super) fn of(most: usize) -> Self {
        Self { most, all: 0, named: BTreeMap::new() }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::of(MOST_CONNECTIONS)
    }
}

/// A connection's place in the table, released when dropped.
#[derive(Debug)]
pub(super) struct Place {
    table: Arc<Mutex<Table>>,
    name: Option<RoleName>,
}

impl Place {
    /// Takes one more place.
    pub(super) fn take(table: &Arc<Mutex<Table>>, name: Option<&RoleName>) -> Result<Self, Refusal> {
        let mut open = table.lock().unwrap_or_else(PoisonError::into_inner);
        let crowded =
            |most| Refusal::new(Reason::Overloaded, format!("the limit of {most} connections is reached; retry later"));
        if open.all >= open.most {
            return Err(crowded(open.most));
        }
        if let Some(name) = name {
            let of_one = open.named.entry(name.clone()).or_default();
            if *of_one >= MOST_OF_ONE {
                return Err(crowded(MOST_OF_ONE));
            }
            *of_one += 1;
        }
        open.all += 1;
        Ok(Self { table: Arc::clone(table), name: name.cloned() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        if let Some(name) = &self.name
            && let Some(of_one) = open.named.get_mut(name)
        {
            *of_one -= 1;
            if *of_one == 0 {
                open.named.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Role;

    #[test]
    fn one_name_leaves_room_for_others_and_gives_back_what_it_had() {
        let table = Arc::<Mutex<Table>>::default();
        let mad = Role::Controller.name();
        let places: Vec<_> =
            std::iter::from_fn(|| Place::take(&table, Some(&mad)).ok()).take(2 * MOST_OF_ONE).collect();
        assert_eq!(places.len(), MOST_OF_ONE);
        let other = Place::take(&table, Some(&Role::Operator.name())).unwrap();
        drop(places);
        drop(other);
        let open = table.lock().unwrap();
        assert!(open.all == 0 && open.named.is_empty());
    }

    #[test]
    fn there_is_an_end_to_connections_of_nobody_too() {
        let table = Arc::<Mutex<Table>>::default();
        let places: Vec<_> = std::iter::from_fn(|| Place::take(&table, None).ok()).collect();
        assert_eq!(places.len(), MOST_CONNECTIONS);
        assert_eq!(Place::take(&table, None).unwrap_err().reason, Reason::Overloaded);
    }
}
