//! How often each call was answered how: what was never reached was not tried.

use std::collections::BTreeMap;
use std::fmt;

use tonic::Code;

use super::call::Seen;

/// Counts over all cases of a test.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) steps: usize,
    pub(super) cases: usize,
    pub(super) restarts: usize,
    /// Calls whose answer nobody waited for.
    pub(super) unheard: usize,
    answers: BTreeMap<&'static str, BTreeMap<String, usize>>,
}

impl Tally {
    pub(super) fn heard(&mut self, rpc: &'static str, seen: &Seen) {
        let code = seen.as_ref().map_or_else(|refused| refused.code, |_| Code::Ok);
        *self.answers.entry(rpc).or_default().entry(format!("{code:?}")).or_default() += 1;
    }

    /// Those of `expected` that were never answered.
    pub(super) fn missing(&self, expected: &[(&'static str, &[Code])]) -> Vec<String> {
        let never =
            |rpc: &str, code: &Code| self.answers.get(rpc).and_then(|codes| codes.get(&format!("{code:?}"))).is_none();
        let all = expected.iter().flat_map(|(rpc, codes)| codes.iter().map(move |code| (*rpc, code)));
        all.filter(|(rpc, code)| never(rpc, code)).map(|(rpc, code)| format!("{rpc} {code:?}")).collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, cases, restarts, unheard, answers } = self;
        writeln!(f, "{steps} steps in {cases} cases, {restarts} restarts, {unheard} answers nobody waited for")?;
        for (rpc, codes) in answers {
            let codes: Vec<_> = codes.iter().map(|(code, count)| format!("{code} {count}")).collect();
            writeln!(f, "  {rpc:<28} {}", codes.join(", "))?;
        }
        Ok(())
    }
}
