//! `holdfast demo`: the lifecycle of a volume on a temporary pool, with real loop devices, over the driver's CSI socket.
//! It uses its own mount namespace, and removes everything at the end, also after a failure or ^C.

mod client;
mod ground;

use std::collections::HashMap;
use std::fs::{self, File};
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use holdfast::os::{Os, Stopwatch};
use holdfast::types::{Bytes, NodeId};
use tokio::signal::unix::{SignalKind, signal};
use tonic::Code;

use self::client::{Client, InUse};
use self::ground::{DemoEnvironment, Footprint};
use super::output::{Paint, complain, say_as_is};

const SIZE: Bytes = Bytes::mib(320);
const GROWN: Bytes = Bytes::mib(448);
/// The amount of data that is written and compared.
const CONTENT: Bytes = Bytes::mib(32);

/// `holdfast demo` takes no arguments.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Arguments {}

/// Runs the demonstration: exit code 0 when every step succeeded, 1 when one failed.
pub(crate) fn run(_: Arguments) -> Result<ExitCode> {
    let os = Os::new();
    os.own_mounts().context("the demo mounts filesystems and attaches loop devices: run it as root")?;
    let mut ground = DemoEnvironment::new(&os)?;
    // One thread: the driver ends when the thread that started it ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut story = Story { paint: Paint::detect(), total: Stopwatch::start(), steps: 0 };
    story.title();
    let told = runtime.block_on(async {
        // Installed before the first step: a signal during a step that blocks is handled after the step.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            told = tell(&mut story, &mut ground) => told,
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow::anyhow!("received SIGTERM")),
        }
    });
    let code = match &told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            story.failed(error, &ground.last_words());
            ExitCode::FAILURE
        }
    };
    if let Err(error) = ground.clear() {
        complain(&format!("the demo could not remove everything: {error:#}"));
        return Ok(ExitCode::FAILURE);
    }
    if told.is_ok() {
        story.end();
    }
    Ok(code)
}

/// A volume of the demonstration.
struct Actor {
    volume_id: String,
    staging: PathBuf,
    target: PathBuf,
}

impl Actor {
    fn in_use(&self) -> InUse<'_> {
        InUse { volume_id: &self.volume_id, staging: &self.staging, target: &self.target }
    }

    fn file(&self) -> PathBuf {
        self.target.join("data")
    }
}

async fn tell(story: &mut Story, ground: &mut DemoEnvironment) -> Result<()> {
    let node: NodeId = "demo-node".parse()?;
    story.step("prepare", async { prepare(ground) }).await?;
    let mut client = None;
    let before = story
        .step("start", async {
            let driver = client.insert(ground.start_driver(&node).await?);
            let who = driver.who().await?;
            Ok((format!("the driver answers on its socket: {who}"), ground.footprint()?))
        })
        .await?;
    let mut driver = client.context("the driver is up")?;

    let first = begin(story, &mut driver, ground).await?;
    let content = noise(CONTENT)?;
    story
        .step("write", async {
            write(&first.file(), &content)?;
            Ok((format!("the pod writes {CONTENT} and calls fsync"), ()))
        })
        .await?;
    let snapshot_id = snapshot(story, &mut driver, ground, &first).await?;
    story
        .step("overwrite", async {
            write(&first.file(), b"the pod wrote something else after the snapshot\n")?;
            Ok(("the pod replaces the file".to_owned(), ()))
        })
        .await?;
    story
        .step("refuse", async {
            match driver.try_delete(&first.volume_id).await {
                Err(status) if status.code() == Code::FailedPrecondition => {
                    Ok(("the driver rejects DeleteVolume of a volume in use and changes nothing".to_owned(), ()))
                }
                Err(status) => bail!("DeleteVolume of a volume in use answered {:?}", status.code()),
                Ok(()) => bail!("DeleteVolume deleted a volume in use"),
            }
        })
        .await?;
    let pid = story
        .step("kill -9", async {
            let pid = ground.kill_driver()?;
            let kept = fs::read(first.file())?;
            if !kept.starts_with(b"the pod wrote") {
                bail!("the pod can no longer read its file");
            }
            Ok((format!("the driver (pid {pid}) is gone; the pod continues to read"), pid))
        })
        .await?;
    story
        .step("restart", async {
            driver = ground.start_driver(&node).await?;
            Ok((format!("a new driver replaces {pid} and finds everything in the pool"), ()))
        })
        .await?;
    let second = restore(story, &mut driver, ground, &snapshot_id).await?;
    story
        .step("compare", async {
            let restored = fs::read(second.file())?;
            if restored != content {
                bail!("the restored file differs from what was written before the snapshot");
            }
            Ok((format!("{CONTENT} of the restored volume are identical to the snapshot"), ()))
        })
        .await?;
    grow(story, &mut driver, ground, &second, &content).await?;
    end(story, &mut driver, ground, &[first, second], &snapshot_id, &before).await
}

fn prepare(ground: &mut DemoEnvironment) -> Result<(String, ())> {
    ground.make_pool()?;
    let kind = match &ground.fallback {
        None => "XFS with reflink".to_owned(),
        Some(reason) => format!("ext4, because XFS is not available here ({reason})"),
    };
    Ok((format!("a temporary pool on {}: {kind}", ground.device()), ()))
}

/// Create, attach, format and mount, publish.
async fn begin(story: &mut Story, driver: &mut Client, ground: &DemoEnvironment) -> Result<Actor> {
    let volume = story
        .step("create", async {
            let volume = driver.create("demo-volume", SIZE, None).await?;
            Ok((format!("a volume of {SIZE}, all bytes allocated"), volume))
        })
        .await?;
    let actor =
        Actor { volume_id: volume.volume_id, staging: ground.staging("first")?, target: ground.target("first") };
    let context = attach(story, driver, &actor).await?;
    story
        .step("format", async {
            driver.stage(&actor.in_use(), &context).await?;
            Ok((format!("verified as blank, formatted once as {}, mounted on the node", ground.fs), ()))
        })
        .await?;
    mount(story, driver, &actor, &context).await?;
    Ok(actor)
}

/// With reflinks: while the pod runs. Without: a copy, while the volume is detached.
async fn snapshot(story: &mut Story, driver: &mut Client, ground: &DemoEnvironment, actor: &Actor) -> Result<String> {
    story
        .step("snapshot", async {
            if ground.fallback.is_none() {
                let snapshot = driver.snapshot("demo-snapshot", &actor.volume_id).await?;
                return Ok(("of one point in time, while the pod runs".to_owned(), snapshot.snapshot_id));
            }
            driver.release(&actor.in_use()).await?;
            let snapshot = driver.snapshot("demo-snapshot", &actor.volume_id).await?;
            driver.bring(&actor.in_use()).await?;
            Ok(("a copy of the detached volume: the pool has no reflinks".to_owned(), snapshot.snapshot_id))
        })
        .await
}

/// XFS grows while mounted; ext4 needs CAP_SYS_RESOURCE for that, so it grows at the next mount.
async fn grow(
    story: &mut Story,
    driver: &mut Client,
    ground: &DemoEnvironment,
    actor: &Actor,
    content: &[u8],
) -> Result<()> {
    story
        .step("grow", async {
            let was = room(&actor.target)?;
            let how = if ground.fallback.is_none() {
                driver.grow_device(&actor.volume_id, GROWN).await?;
                driver.grow_filesystem(&actor.in_use(), GROWN).await?;
                "while mounted"
            } else {
                driver.release(&actor.in_use()).await?;
                driver.grow_device(&actor.volume_id, GROWN).await?;
                driver.bring(&actor.in_use()).await?;
                "at the next mount"
            };
            let is = room(&actor.target)?;
            if is <= was || fs::read(actor.file())? != content {
                bail!("the filesystem has {is} after growing, {was} before");
            }
            Ok((format!("{SIZE} -> {GROWN} {how}; the pod sees {was} -> {is}"), ()))
        })
        .await
}

/// Creates a volume from the snapshot and mounts it beside its source.
async fn restore(story: &mut Story, driver: &mut Client, ground: &DemoEnvironment, snapshot_id: &str) -> Result<Actor> {
    story
        .step("restore", async {
            let volume = driver.create("demo-restored", SIZE, Some(snapshot_id)).await?;
            let actor = Actor {
                volume_id: volume.volume_id,
                staging: ground.staging("second")?,
                target: ground.target("second"),
            };
            driver.bring(&actor.in_use()).await?;
            Ok(("the snapshot as a new volume, mounted beside its source".to_owned(), actor))
        })
        .await
}

async fn attach(story: &mut Story, driver: &mut Client, actor: &Actor) -> Result<HashMap<String, String>> {
    story
        .step("attach", async {
            let context = driver.attach(&actor.volume_id).await?;
            Ok(("to this node, and to no other".to_owned(), context))
        })
        .await
}

async fn mount(story: &mut Story, driver: &mut Client, actor: &Actor, context: &HashMap<String, String>) -> Result<()> {
    story
        .step("mount", async {
            driver.publish(&actor.in_use(), context).await?;
            Ok(("bind-mounted into the pod's directory".to_owned(), ()))
        })
        .await
}

/// Removes the volumes, and verifies that nothing is left.
async fn end(
    story: &mut Story,
    driver: &mut Client,
    ground: &mut DemoEnvironment,
    actors: &[Actor],
    snapshot_id: &str,
    before: &Footprint,
) -> Result<()> {
    story
        .step("release", async {
            for actor in actors {
                driver.release(&actor.in_use()).await?;
            }
            Ok(("unmounted and detached from the node".to_owned(), ()))
        })
        .await?;
    story
        .step("delete", async {
            for actor in actors {
                driver.delete(&actor.volume_id).await?;
            }
            driver.delete_snapshot(snapshot_id).await?;
            Ok(("both volumes and the snapshot".to_owned(), ()))
        })
        .await?;
    story
        .step("stop", async {
            ground.stop_driver().await?;
            Ok(("SIGTERM: the driver exits with code 0 and removes its socket".to_owned(), ()))
        })
        .await?;
    story
        .step("verify", async {
            let left = ground.footprint()?.since(before);
            if !left.is_empty() {
                bail!("left behind: {}", left.join(", "));
            }
            Ok(("nothing is left: loop devices, mounts and files are as before".to_owned(), ()))
        })
        .await
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(())
}

/// Bytes without a pattern (xorshift64), so that a hole, a shift or an old block is detected.
fn noise(length: Bytes) -> Result<Vec<u8>> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let words = usize::try_from(length.get() / 8)?;
    let word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    Ok(std::iter::repeat_with(word).take(words).flatten().collect())
}

/// The size of the filesystem a pod sees.
fn room(path: &Path) -> Result<Bytes> {
    Ok(Bytes::new(Os::new().fs_space(path)?.total))
}

/// Prints one line for each step: name, result and duration.
struct Story {
    paint: Paint,
    total: Stopwatch,
    steps: u32,
}

impl Story {
    fn title(&self) {
        say_as_is("");
        say_as_is(&self.paint.strong("Holdfast: the lifecycle of a volume, over the driver's CSI socket"));
        say_as_is("");
    }

    async fn step<T>(&mut self, name: &str, work: impl Future<Output = Result<(String, T)>>) -> Result<T> {
        let watch = Stopwatch::start();
        let done = work.await;
        let took = format!("{:>6} ms", watch.elapsed().as_millis());
        self.steps += 1;
        let name_column = format!("{name:<10}");
        match done {
            Ok((sentence, value)) => {
                let tick = self.paint.good("ok");
                say_as_is(&format!(
                    "  {tick}  {}  {}  {sentence}",
                    self.paint.faint(&took),
                    self.paint.strong(&name_column)
                ));
                Ok(value)
            }
            Err(error) => {
                let cross = self.paint.bad("--");
                say_as_is(&format!("  {cross}  {}  {}", self.paint.faint(&took), self.paint.strong(&name_column)));
                Err(error.context(format!("step \"{name}\" failed")))
            }
        }
    }

    fn failed(&self, error: &anyhow::Error, last_words: &str) {
        say_as_is("");
        say_as_is(&format!("  {}", self.paint.bad(&format!("{error:#}"))));
        if !last_words.is_empty() {
            say_as_is(&self.paint.faint("  the last log lines of the driver:"));
            say_as_is(&format!("    {last_words}"));
        }
    }

    fn end(&self) {
        let seconds = self.total.elapsed().as_secs_f64();
        say_as_is("");
        say_as_is(&self.paint.good(&format!("  {} steps in {seconds:.1} s, all successful.", self.steps)));
        say_as_is("");
    }
}
