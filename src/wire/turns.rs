//! A limit on how much of one thing each client has in progress.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Turns of all clients. Cheap to clone; clones count together.
#[derive(Clone, Default)]
pub struct Turns(Arc<Mutex<BTreeMap<Arc<str>, usize>>>);

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Turns").field(&self.of().len()).finish()
    }
}

impl Turns {
    fn of(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more of this client; `None` when it has `most`.
    #[must_use]
    pub fn take(&self, client: &Arc<str>, most: usize) -> Option<Turn> {
        let mut of = self.of();
        let own = of.get(client).copied().unwrap_or_default();
        if own >= most {
            return None;
        }
        of.insert(Arc::clone(client), own + 1);
        Some(Turn { turns: self.clone(), client: Arc::clone(client) })
    }
}

/// A client's turn, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    client: Arc<str>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut of = self.turns.of();
        if let Some(own) = of.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                of.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_so_many_and_others_have_theirs() {
        let turns = Turns::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let kept: Vec<_> = (0..2).map(|_| turns.take(&a, 2).unwrap()).collect();
        assert!(turns.take(&a, 2).is_none() && turns.take(&b, 2).is_some());
        drop(kept);
        assert!(turns.take(&a, 2).is_some());
        assert!(turns.of().is_empty());
    }
}
