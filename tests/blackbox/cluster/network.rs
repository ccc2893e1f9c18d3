//! The network between a controller and a node stops transporting bytes, without an error on either side.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use holdfast::csi::proto as p;
use holdfast::os::Stopwatch;
use tonic::Code;

use super::harness::{Cluster, Wire, on};
use crate::harness::{Use, await_that, create_request, refused};

/// The directions in which bytes are delayed; they are not lost, as in a network that recovers.
#[derive(Default)]
struct Held {
    to_node: AtomicBool,
    to_controller: AtomicBool,
}

fn carry(mut from: TcpStream, mut to: TcpStream, held: impl Fn() -> bool + Send + 'static) {
    thread::spawn(move || {
        let mut bytes = [0; 16384];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            while held() {
                thread::sleep(Duration::from_millis(5));
            }
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
}

/// A relay to `node` that can delay bytes: the address to dial.
fn way_to(node: String) -> (String, Arc<Held>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, held) = (listener.local_addr().unwrap().to_string(), Arc::<Held>::default());
    let flags = Arc::clone(&held);
    thread::spawn(move || {
        for here in listener.incoming() {
            let here = here.unwrap();
            let Ok(there) = TcpStream::connect(&node) else { continue };
            let (to, back) = (Arc::clone(&flags), Arc::clone(&flags));
            carry(here.try_clone().unwrap(), there.try_clone().unwrap(), move || to.to_node.load(Ordering::SeqCst));
            carry(there, here, move || back.to_controller.load(Ordering::SeqCst));
        }
    });
    (address, held)
}

#[test]
fn a_network_that_stops_carrying_is_noticed_named_and_forgiven() {
    let mut cluster = Cluster::stopped(&["node-a", "node-b"], 1, Wire::Plain);
    let (address, held) = way_to(cluster.nodes["node-b"].address.clone());
    // Heartbeats still arrive: only the direction from the controller to the node is cut.
    cluster.nodes.get_mut("node-b").unwrap().extra = vec!["--advertise".to_owned(), address];
    cluster.start_controller(0);
    cluster.start_node("node-a");
    cluster.start_node("node-b");
    cluster.ready(0);
    cluster.heard(0, "node-a");
    cluster.heard(0, "node-b");
    let (here, there) = (cluster.create("here", Use::Block, "node-a"), cluster.create("there", Use::Block, "node-b"));
    for (name, both) in [("both", true), ("replies", false)] {
        held.to_node.store(both, Ordering::SeqCst);
        held.to_controller.store(true, Ordering::SeqCst);
        // A caller with a deadline gets an answer in time, and it names the node.
        let mut request = tonic::Request::new(p::CreateVolumeRequest {
            accessibility_requirements: Some(on("node-b")),
            ..create_request(name, Use::Block, Use::Block.size())
        });
        request.set_timeout(Duration::from_secs(6));
        let begun = Stopwatch::start();
        let said = refused(
            cluster.call(cluster.controller(0).create_volume(request)),
            &[Code::Unavailable, Code::DeadlineExceeded],
        );
        assert!(begun.elapsed() < Duration::from_secs(6) && said.contains("node-b"), "{:?}: {said}", begun.elapsed());
        // One without a deadline gets it when the connection is closed: 10 s to the next ping, 5 s for its answer.
        let begun = Stopwatch::start();
        let said = refused(cluster.publish(0, &there, "node-b"), &[Code::Unavailable, Code::DeadlineExceeded]);
        println!("{name}: without a deadline answered after {:?}: {said}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(18) && said.contains("node-b"), "{:?}: {said}", begun.elapsed());
        cluster.publish(0, &here, "node-a").unwrap();
        cluster.unpublish(0, &here, "node-a").unwrap();

        held.to_node.store(false, Ordering::SeqCst);
        held.to_controller.store(false, Ordering::SeqCst);
        cluster.until(0, &there, Code::Ok);
        let mut made = None;
        await_that("the create is answered", Duration::from_secs(30), || {
            made = cluster.try_create(0, name, Use::Block, "node-b").ok();
            made.is_some()
        });
        assert_eq!(cluster.list(0).unwrap().len(), 3);
        await_that("the publish is answered", Duration::from_secs(30), || cluster.publish(0, &there, "node-b").is_ok());
        cluster.unpublish(0, &there, "node-b").unwrap();
        cluster.delete(0, &made.unwrap()).unwrap();
        assert_eq!(cluster.list(0).unwrap().len(), 2);
    }
    for vol in [here, there] {
        cluster.delete(0, &vol).unwrap();
    }
    cluster.finish();
}
