//! Manifests of claims, pods and classes.

use serde_json::{Value, json};

/// A claim. Defaults: 256Mi of the class `holdfast`, a filesystem, one node.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) name: String,
    pub(crate) class: String,
    pub(crate) size: String,
    pub(crate) mode: &'static str,
    pub(crate) access: &'static str,
    pub(crate) source: Option<Value>,
    pub(crate) volume: Option<String>,
    pub(crate) selector: Option<Value>,
}

impl Claim {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            class: "holdfast".to_owned(),
            size: "256Mi".to_owned(),
            mode: "Filesystem",
            access: "ReadWriteOnce",
            source: None,
            volume: None,
            selector: None,
        }
    }

    pub(crate) fn class(mut self, class: &str) -> Self {
        class.clone_into(&mut self.class);
        self
    }

    pub(crate) fn size(mut self, size: &str) -> Self {
        size.clone_into(&mut self.size);
        self
    }

    pub(crate) fn block(mut self) -> Self {
        self.mode = "Block";
        self
    }

    pub(crate) fn one_pod(mut self) -> Self {
        self.access = "ReadWriteOncePod";
        self
    }

    pub(crate) fn of_snapshot(mut self, snapshot: &str) -> Self {
        self.source = Some(json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": snapshot}));
        self
    }

    pub(crate) fn of_claim(mut self, claim: &str) -> Self {
        self.source = Some(json!({"kind": "PersistentVolumeClaim", "name": claim}));
        self
    }

    pub(crate) fn of_volume(mut self, volume: &str) -> Self {
        self.volume = Some(volume.to_owned());
        self
    }

    pub(crate) fn selected(mut self, labels: &Value) -> Self {
        self.selector = Some(json!({"matchLabels": labels}));
        self
    }

    pub(crate) fn spec(&self) -> Value {
        let mut spec = json!({
            "accessModes": [self.access],
            "volumeMode": self.mode,
            "storageClassName": self.class,
            "resources": {"requests": {"storage": self.size}},
        });
        for (key, value) in [
            ("dataSource", self.source.clone()),
            ("volumeName", self.volume.clone().map(Value::from)),
            ("selector", self.selector.clone()),
        ] {
            if let Some(value) = value {
                spec[key] = value;
            }
        }
        spec
    }

    pub(crate) fn manifest(&self) -> Value {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": self.name}, "spec": self.spec()})
    }
}

/// A pod that runs until it is deleted, with volumes at `/NAME`, or as devices at `/dev/NAME`.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    node: Option<String>,
    script: String,
    volumes: Vec<Value>,
    mounts: Vec<Value>,
    devices: Vec<Value>,
    security: Value,
}

/// Exits at once on SIGTERM, which a shell as process 1 would not.
const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";

impl Pod {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            node: None,
            script: IDLE.to_owned(),
            volumes: Vec::new(),
            mounts: Vec::new(),
            devices: Vec::new(),
            security: json!({}),
        }
    }

    pub(crate) fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    pub(crate) fn runs(mut self, script: &str) -> Self {
        self.script = format!("{script}\n{IDLE}");
        self
    }

    pub(crate) fn security(mut self, security: Value) -> Self {
        self.security = security;
        self
    }

    /// A filesystem, at `/CLAIM`.
    pub(crate) fn mounts(self, claim: &str) -> Self {
        self.mounts_with(claim, false)
    }

    pub(crate) fn reads(self, claim: &str) -> Self {
        self.mounts_with(claim, true)
    }

    fn mounts_with(mut self, claim: &str, read_only: bool) -> Self {
        self.volumes.push(json!({"name": claim, "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}));
        self.mounts.push(json!({"name": claim, "mountPath": format!("/{claim}"), "readOnly": read_only}));
        self
    }

    /// A device, `/dev/CLAIM`.
    pub(crate) fn device(self, claim: &str) -> Self {
        self.device_with(claim, false)
    }

    /// The same with `persistentVolumeClaim.readOnly: true`.
    pub(crate) fn device_to_read(self, claim: &str) -> Self {
        self.device_with(claim, true)
    }

    fn device_with(mut self, claim: &str, read_only: bool) -> Self {
        self.volumes.push(json!({"name": claim, "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}));
        self.devices.push(json!({"name": claim, "devicePath": format!("/dev/{claim}")}));
        self
    }

    /// An ephemeral claim of the pod, at `/NAME`.
    pub(crate) fn ephemeral(mut self, claim: &Claim) -> Self {
        let template = json!({"spec": claim.spec()});
        self.volumes.push(json!({"name": claim.name, "ephemeral": {"volumeClaimTemplate": template}}));
        self.mounts.push(json!({"name": claim.name, "mountPath": format!("/{}", claim.name)}));
        self
    }

    pub(crate) fn spec(&self) -> Value {
        let mut spec = json!({
            "terminationGracePeriodSeconds": 5,
            "securityContext": self.security,
            "containers": [{
                "name": "main",
                "image": "localhost/test:e2e",
                "imagePullPolicy": "Never",
                "command": ["/bin/bash", "-c", self.script],
                "volumeMounts": self.mounts,
                "volumeDevices": self.devices,
            }],
            "volumes": self.volumes,
        });
        if let Some(node) = &self.node {
            spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        spec
    }

    pub(crate) fn manifest(&self) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name, "labels": {"app": self.name}}, "spec": self.spec()})
    }
}

/// A StorageClass of the driver that waits for the first consumer.
pub(crate) fn class(name: &str, reclaim: &str, parameters: &Value) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": "csi.holdfast.storage", "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true, "reclaimPolicy": reclaim, "parameters": parameters,
    })
}

/// A snapshot of a claim.
pub(crate) fn snapshot(name: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
        "spec": {"volumeSnapshotClassName": "holdfast", "source": {"persistentVolumeClaimName": claim}},
    })
}
