//! PostgreSQL in the pod of an [`App`], on its claim `db`, and what it acknowledged.

use std::collections::BTreeSet;
use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::app::App;
use crate::harness::{exec, try_kubectl, until, within};

/// Starts the database. At the first start it is a copy of the one that Debian's package has created, because initdb takes
/// minutes on an emulated node, with checksums of its pages.
pub(crate) const START: &str = "
bin=$(echo /usr/lib/postgresql/*/bin)
if [ ! -e /db/data ]; then
    rm -rf /db/new
    cp -a /var/lib/postgresql/*/main /db/new
    su postgres -c \"$bin/pg_checksums -D /db/new --enable --no-sync\" >/dev/null
    echo 'local all all trust' >/db/new/pg_hba.conf
    touch /db/new/pg_ident.conf /db/new/postgresql.conf
    chown -R postgres: /db/new
    sync -f /db
    mv /db/new /db/data
fi
# The claim is of one pod at a time: whoever wrote this is gone.
rm -f /db/data/postmaster.pid
su postgres -c \"$bin/postgres -D /db/data -k /tmp -h ''\" &
";

/// The ids of rows that a client was told are committed, kept here, outside the cluster.
#[derive(Debug, Default)]
pub(crate) struct Database {
    acknowledged: Arc<Mutex<BTreeSet<u64>>>,
    clients: u64,
}

/// A client that inserts rows one by one, until its pod ends or it is dropped.
pub(crate) struct Client {
    kubectl: Child,
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.kubectl.kill());
        drop(self.kubectl.wait());
    }
}

/// The answer to a statement, once the database answers.
fn sql(app: &App, statement: &str) -> String {
    // A process in the pod for each question would delay its start, and so would many questions.
    within(600, "the database is ready", || {
        let log = try_kubectl(&["-n", &app.space.name, "logs", &app.pod()], None)?;
        if log.contains("ready to accept connections") {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(3));
        Err(log)
    });
    let script = format!("/usr/lib/postgresql/*/bin/psql -h /tmp -U postgres -v ON_ERROR_STOP=1 -Atc \"{statement}\"");
    until("the database answers", || exec(&app.space.name, &app.pod(), &script)).trim().to_owned()
}

impl Database {
    /// An empty table, in the App's pod.
    pub(crate) fn new(app: &App) -> Self {
        sql(app, "create table rows (id bigint primary key, word text)");
        sql(app, "create extension amcheck");
        Self::default()
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Starts a client beside the database, in a range of ids of its own.
    pub(crate) fn client(&mut self, app: &App) -> Client {
        sql(app, "select 1");
        self.clients += 1;
        let first = self.clients * 1_000_000;
        let script = format!(
            "id={first}; while :; do echo \"insert into rows values ($id, md5('$id')) returning id;\"; id=$((id+1)); sleep 0.05; done |
             exec /usr/lib/postgresql/*/bin/psql -h /tmp -U postgres -v ON_ERROR_STOP=1 -Atq"
        );
        let directory = env::var("HOLDFAST_E2E").unwrap();
        let mut kubectl = Command::new(format!("{directory}/bin/kubectl"));
        kubectl.arg(format!("--kubeconfig={directory}/admin.kubeconfig"));
        kubectl.args(["-n", &app.space.name, "exec", &app.pod(), "--", "bash", "-c", &script]);
        let mut kubectl = kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(kubectl.stdout.take().unwrap()).lines();
        let acknowledged = Arc::clone(&self.acknowledged);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // The last line may be incomplete.
                if let Ok(id) = line.trim().parse::<u64>() {
                    acknowledged.lock().unwrap().insert(id);
                }
            }
        });
        let client = Client { kubectl };
        self.goes_on();
        client
    }

    /// Waits for more rows; returns how many there are.
    pub(crate) fn goes_on(&self) -> usize {
        let before = self.count();
        until("rows are inserted", || match self.count() {
            now if now > before + 5 => Ok(now),
            now => Err(format!("{now} rows, as {before} before")),
        })
    }

    /// How many rows were acknowledged up to now, when none can be any more.
    pub(crate) fn acknowledged(&self) -> usize {
        self.count()
    }

    /// Every acknowledged row is there with its content, and PostgreSQL finds no damage.
    pub(crate) fn complete(&self, app: &App, moment: &str) {
        // First: a client may go on meanwhile.
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        let rows = sql(app, "select id from rows where word = md5(id::text)");
        let there: BTreeSet<u64> = rows.lines().map(|line| line.trim().parse().unwrap()).collect();
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        assert!(
            lost.is_empty(),
            "{moment}: {} of {} acknowledged rows are lost: {lost:?}",
            lost.len(),
            acknowledged.len()
        );
        let checked = until("the check of the database", || {
            exec(
                &app.space.name,
                &app.pod(),
                "/usr/lib/postgresql/*/bin/pg_amcheck -h /tmp -U postgres --database=postgres --heapallindexed && echo checked; true",
            )
        });
        assert_eq!(checked.trim(), "checked", "{moment}");
        eprintln!(
            "{moment}: all {} acknowledged rows are there ({} in all), and pg_amcheck finds nothing",
            acknowledged.len(),
            there.len()
        );
    }

    /// Stops the database and verifies the checksum of every page.
    pub(crate) fn checksums(&self, app: &App) {
        let script = "
            bin=$(echo /usr/lib/postgresql/*/bin)
            su postgres -c \"$bin/pg_ctl -D /db/data -m fast -w -t 120 stop\" >/dev/null
            su postgres -c \"$bin/pg_checksums -D /db/data --check\"";
        let said = exec(&app.space.name, &app.pod(), script).unwrap_or_else(|said| panic!("{said}"));
        assert!(said.contains("Bad checksums:  0"), "{said}");
        eprintln!("{}", said.trim());
    }
}
