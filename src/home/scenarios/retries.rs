//! Retries and lists.

use super::*;

both_ways! {
    a_retried_create_meets_its_own_first_try_and_another_request_is_refused,
    one_name_is_one_volume_also_when_two_pools_are_asked_at_once,
    a_damaged_record_is_refused_alone_and_fails_the_list,
    pages_follow_each_other_and_survive_the_loss_of_their_token,
}

fn a_retried_create_meets_its_own_first_try_and_another_request_is_refused(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let first = rig.create("a", 32);
    assert_eq!(rig.home.create_volume(&request("a", 32)).unwrap(), Created::Existing(first.clone()));
    assert_eq!(clean(rig.home.create_volume(&request("a", 33))), Kind::AlreadyExists);
    let other = CreateVolume {
        parameters: VolumeParameters { provisioning: Some(Provisioning::Thin), ..Default::default() },
        ..request("a", 32)
    };
    assert_eq!(clean(rig.home.create_volume(&other)), Kind::AlreadyExists);
    let block = Capability { mode: VolumeMode::Block, access: AccessMode::SingleNodeWriter };
    assert_eq!(
        clean(rig.home.create_volume(&CreateVolume { capabilities: vec![block], ..request("a", 32) })),
        Kind::AlreadyExists
    );
    let rig = rig.again();
    assert_eq!(rig.home.volumes(None, 0).unwrap().entries, vec![first]);
}

/// Blocks the creation of every image until it is released.
struct Slow(Arc<Gate>);

impl Interceptor for Slow {
    fn before(&self, call: Call, _target: &str) -> io::Result<()> {
        if call == Call::CreateImage {
            let open = self.0.open.lock().unwrap();
            drop(self.0.changed.wait_while(open, |open| !*open).unwrap());
        }
        Ok(())
    }

    fn after(&self, _call: Call, _target: &str) -> io::Result<()> {
        Ok(())
    }
}

fn one_name_is_one_volume_also_when_two_pools_are_asked_at_once(way: Way) {
    let gate = Arc::new(Gate::default());
    let os = Os::intercepted(Box::new(Slow(Arc::clone(&gate))));
    let grounds = [Scratch::new(PoolFs::Xfs), Scratch::new(PoolFs::Ext4)];
    gate.set(true);
    let named = |name: &str, scratch: &Scratch| {
        let spec = format!("{name}=file:{}", scratch.root().display()).parse().unwrap();
        (pool::open(&os, &spec, &node()).unwrap(), SpaceLimits::default())
    };
    let pools = vec![named("one", &grounds[0]), named("two", &grounds[1])];
    let (home, _wire) = way.to(LocalHome::open(os.clone(), node(), pools).unwrap());
    gate.set(false);
    let in_pool = |name: &str| {
        let parameters = VolumeParameters { pool: Some(name.parse().unwrap()), ..VolumeParameters::default() };
        CreateVolume { parameters, ..request("a", 32) }
    };
    let (first, other) = (Arc::clone(&home), in_pool("one"));
    let creating = std::thread::spawn(move || first.create_volume(&other));
    std::thread::sleep(std::time::Duration::from_millis(100));
    let failure = home.create_volume(&in_pool("two"));
    gate.set(true);
    assert!(creating.join().unwrap().is_ok());
    assert!(matches!(failure.unwrap_err(), Failure::Dirty(error) if error.kind() == Kind::Busy));
    assert_eq!(clean(home.create_volume(&in_pool("two"))), Kind::AlreadyExists);
}

fn a_damaged_record_is_refused_alone_and_fails_the_list(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let (bad, good) = (rig.create("bad", 32).id, rig.create("good", 32).id);
    let object = Object::Volume(bad.uuid);
    let text = rig.pool.text(object);
    rig.pool.write(object, &text[..text.len() / 2]).unwrap();
    let rig = rig.again();
    assert_eq!(rig.home.volume(&bad).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(rig.home.delete_volume(&bad).unwrap_err().kind(), Kind::Corrupt);
    assert!(matches!(rig.home.create_volume(&request("bad", 32)).unwrap_err(), Failure::Dirty(_)));
    rig.grant(&good);
    rig.home.revoke(&good, None).unwrap();
    let error = rig.home.volumes(None, 0).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.chain().contains(&bad.uuid.to_string()), "{}", error.chain());
    assert!(rig.image(&bad).exists());
}

fn pages_follow_each_other_and_survive_the_loss_of_their_token(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    for n in 0..5 {
        rig.create(&format!("v{n}"), 16);
    }
    let first = rig.home.volumes(None, 2).unwrap();
    let token = first.next.unwrap();
    rig.home.delete_volume(&token).unwrap();
    let second = rig.home.volumes(Some(token), 2).unwrap();
    let third = rig.home.volumes(second.next, 2).unwrap();
    assert_eq!((first.entries.len(), second.entries.len(), third.entries.len()), (2, 2, 1));
    assert_eq!(third.next, None);
    let mut ids: Vec<_> = [first.entries, second.entries, third.entries].concat().iter().map(|v| v.id).collect();
    ids.dedup();
    assert_eq!(ids.len(), 5);
}
