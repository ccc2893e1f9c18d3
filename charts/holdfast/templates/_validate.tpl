{{/* The checks that values.schema.json cannot express. */}}
{{- define "holdfast.validate" -}}
{{- $tls := .Values.tls }}
{{- $fullname := include "holdfast.fullname" . }}
{{- /* Suffixes need the rest of a label: the names of a StatefulSet and its pods are labels. */}}
{{- $label := "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$" }}
{{- if not (regexMatch $label $fullname) }}
{{- /* The name that an earlier chart used, when it still cut names. */}}
{{- $cut := $fullname | trunc 40 | trimSuffix "-" }}
{{- $keep := ternary (printf "; fullnameOverride=%s keeps what an earlier chart installed" $cut) "" (regexMatch $label $cut) }}
{{- fail (printf "object names would begin with %q, which is not a label of at most 40 characters that begins with a letter; choose another release name, or set fullnameOverride%s" $fullname $keep) }}
{{- end }}
{{- /* Values from a parent chart are for all its subcharts; this chart must not reject them. */}}
{{- if and .Chart.IsRoot .Values.global }}
{{- fail (printf "global.%s: this chart has no global values; remove it; values.yaml lists all values" (keys .Values.global | sortAlpha | first)) }}
{{- end }}
{{- /* The path of a Unix socket has at most 107 bytes, and these two are below kubelet's directory. */}}
{{- $driver := include "holdfast.driver" . }}
{{- $registration := ternary (printf "kubelet@%s-reg.sock" $driver) (printf "%s-reg.sock" $driver) (eq .Values.node.registration "self") }}
{{- range list (printf "plugins_registry/%s" $registration) (printf "plugins/%s/csi.sock" $driver) }}
{{- $socket := printf "%s/%s" $.Values.kubeletDir . }}
{{- if gt (len $socket) 107 }}
{{- fail (printf "kubeletDir: the path of the socket %s would have %d bytes, and a socket path has at most 107; kubelet needs a shorter root directory" $socket (len $socket)) }}
{{- end }}
{{- end }}
{{- $pods := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/part-of" "csi.holdfast.storage/unit" }}
{{- $objects := concat $pods (list "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart") }}
{{- range list (list "commonLabels" .Values.commonLabels $objects) (list "controller.podLabels" .Values.controller.podLabels $pods) (list "node.podLabels" .Values.node.podLabels $pods) }}
{{- $where := index . 0 }}
{{- $own := index . 2 }}
{{- range $key, $_ := index . 1 }}
{{- if has $key $own }}
{{- fail (printf "%s: %s is the chart's own label, and selectors may use it; choose another key" $where $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $where, $given := dict "controller.extraEnv" .Values.controller.extraEnv "node.extraEnv" .Values.node.extraEnv }}
{{- range $given }}
{{- if has .name (list "NODE_NAME" "HOST_IP" "HOLDFAST_CONTROLLER") }}
{{- fail (printf "%s: %s is the chart's own variable; remove it" $where .name) }}
{{- end }}
{{- end }}
{{- end }}
{{- $network := .Values.network }}
{{- /* The sidecars use 8081 to 8084. */}}
{{- $ports := dict "8081" "the provisioner's" "8082" "the attacher's" "8083" "the resizer's" "8084" "the snapshotter's" }}
{{- range $name := list "controllerPort" "enrolPort" "controllerMetricsPort" }}
{{- $port := get $network $name | toString }}
{{- if hasKey $ports $port }}
{{- fail (printf "network.%s: %s is %s already; choose another port" $name $port (get $ports $port)) }}
{{- end }}
{{- $_ := set $ports $port (printf "network.%s" $name) }}
{{- end }}
{{- if eq (toString $network.nodePort) (toString $network.nodeMetricsPort) }}
{{- fail "network: nodePort and nodeMetricsPort are the same port of the node's address; choose different ports" }}
{{- end }}
{{- $election := .Values.sidecars.leaderElection }}
{{- $lease := include "holdfast.seconds" $election.leaseDuration | int }}
{{- $deadline := include "holdfast.seconds" $election.renewDeadline | int }}
{{- if or (le $lease $deadline) (le (mul $deadline 10) (mul (include "holdfast.seconds" $election.retryPeriod) 12)) }}
{{- fail (printf "sidecars.leaderElection: leaseDuration must be more than renewDeadline, and renewDeadline more than 1.2 times retryPeriod, or the sidecars do not start; they are %s, %s and %s" $election.leaseDuration $election.renewDeadline $election.retryPeriod) }}
{{- end }}
{{- $life := include "holdfast.seconds" $tls.auto.certificateLife | int }}
{{- if or (lt $life 15) (gt $life 71280000) }}
{{- fail (printf "tls.auto.certificateLife: %s is not from 15s to 19800h" $tls.auto.certificateLife) }}
{{- end }}
{{- range $where, $annotations := dict "controller.podAnnotations" .Values.controller.podAnnotations "node.podAnnotations" .Values.node.podAnnotations }}
{{- range $key, $_ := $annotations }}
{{- if has $key (list "checksum/config" "kubectl.kubernetes.io/default-container") }}
{{- fail (printf "%s: %s is the chart's own annotation; choose another key" $where $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- if eq $tls.mode "insecurePlainText" }}
{{- if ne $tls.insecurePlainText.confirm "yes, for tests only" }}
{{- fail "tls.mode insecurePlainText: every client that can reach the ports of controllers and nodes can read or destroy every volume; for a test, set tls.insecurePlainText.confirm=\"yes, for tests only\"" }}
{{- end }}
{{- end }}
{{- if and (eq $tls.mode "files") (not $tls.files.controllerSecret) }}
{{- fail "tls.mode files: name the controllers' Secret in tls.files.controllerSecret; it needs ca.crt, tls.crt and tls.key (run holdfast ca issue --dir CA --role controller --out DIR; docs/install.md, \"Certificates\")" }}
{{- end }}
{{- if and (eq $tls.mode "auto") (eq (include "holdfast.node.account" .) (include "holdfast.controller.account" .)) }}
{{- fail "tls.mode auto: every pod with the nodes' account can get a node's certificate; give nodes and controllers a ServiceAccount each" }}
{{- end }}
{{- if and (eq $tls.mode "auto") (has "default" (list (include "holdfast.node.account" .) (include "holdfast.controller.account" .))) }}
{{- fail "tls.mode auto: every pod of the namespace may use the account default, and could get a node's certificate or read the CA's key; set other ServiceAccounts in node.serviceAccount.name and controller.serviceAccount.name" }}
{{- end }}
{{- if and (eq $tls.mode "auto") (not (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version)) }}
{{- fail (printf "tls.mode auto: tokens of Kubernetes %s do not name the pod's node; use Kubernetes 1.32 or later, or tls.mode files or certManager" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- if and (eq $tls.mode "certManager") (not $tls.certManager.nodes) }}
{{- fail "tls.mode certManager: list the nodes in tls.certManager.nodes; each gets a certificate with its own name" }}
{{- end }}
{{- range (fromYaml (include "holdfast.tls.nodeSecrets" .)).nodes }}
{{- if gt (len .node) 63 }}
{{- fail (printf "node %q: the chart cannot create certificates for names of more than 63 characters; use tls.mode files with tls.files.nodeDirectory" .node) }}
{{- end }}
{{- end }}
{{- $nodes := list }}
{{- $secrets := list }}
{{- if eq $tls.mode "files" }}
{{- range $tls.files.nodeSecrets }}
{{- if has .node $nodes }}
{{- fail (printf "tls.files.nodeSecrets: node %q is listed twice; remove one entry" .node) }}
{{- end }}
{{- if has .secretName (append $secrets $tls.files.controllerSecret) }}
{{- fail (printf "tls.files.nodeSecrets: Secret %q of node %q is also used by another node or by the controllers; use a separate Secret for each: a certificate is for one name, and only its owner may read the key" .secretName .node) }}
{{- end }}
{{- $nodes = append $nodes .node }}
{{- $secrets = append $secrets .secretName }}
{{- end }}
{{- end }}
{{- $names := list }}
{{- range .Values.nodeGroups }}
{{- if has .name $names }}
{{- fail (printf "nodeGroups: two groups have the name %q; use different names" .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- include "holdfast.validate.pools" (list $ (printf "nodeGroups %s: pools" .name) .pools) }}
{{- end }}
{{- if not .Values.nodeGroups }}
{{- include "holdfast.validate.pools" (list . "pools" .Values.pools) }}
{{- end }}
{{- $units := dict }}
{{- $configs := list }}
{{- range (fromYaml (include "holdfast.node.units" .)).units }}
{{- $of := printf "group %q, node %q" (.group | default "") (.node | default "") }}
{{- if hasKey $units .name }}
{{- fail (printf "nodeGroups: %s and %s would both be the DaemonSet %s; rename one of the groups" (get $units .name) $of .name) }}
{{- end }}
{{- $_ := set $units .name $of }}
{{- $configs = append $configs .config }}
{{- end }}
{{- if and (eq $tls.mode "auto") (has (include "holdfast.tls.authority" .) (concat (keys $units) $configs (list (include "holdfast.controller" .) (include "holdfast.snapshotController" .) (printf "%s-dashboard" $fullname)))) }}
{{- fail (printf "tls.auto.authority: the chart itself creates an object %s; choose another name" (include "holdfast.tls.authority" .)) }}
{{- end }}
{{- $pools := list }}
{{- $hasDefault := false }}
{{- range .Values.nodeGroups | default (list (dict "pools" .Values.pools)) }}
{{- range .pools }}{{ $pools = append $pools .name }}{{ end }}
{{- if eq (len .pools) 1 }}{{ $hasDefault = true }}{{ end }}
{{- end }}
{{- $pools = $pools | uniq | sortAlpha }}
{{- $classes := list }}
{{- $default := list }}
{{- range .Values.storageClasses }}
{{- if has .name $classes }}
{{- fail (printf "storageClasses: two classes have the name %q; use different names" .name) }}
{{- end }}
{{- $classes = append $classes .name }}
{{- $pool := (.parameters | default dict).pool }}
{{- if and $pool (not (has $pool $pools)) }}
{{- fail (printf "storageClasses %s: no node has a pool %q, so no volume of this class could be created; use one of the pools %s" .name $pool (join ", " $pools)) }}
{{- end }}
{{- if and (not $pool) (not $hasDefault) (not (has "default" $pools)) }}
{{- fail (printf "storageClasses %s: it names no pool, every node has several, and none has the name default; set parameters.pool to one of %s" .name (join ", " $pools)) }}
{{- end }}
{{- if .isDefault }}{{ $default = append $default .name }}{{ end }}
{{- end }}
{{- if gt (len $default) 1 }}
{{- fail (printf "storageClasses: %s all have isDefault; a cluster has one default class: set it in one of them" (join " and " $default)) }}
{{- end }}
{{- if and .Values.volumeSnapshotClasses (not .Values.sidecars.snapshotter.enabled) }}
{{- fail "volumeSnapshotClasses: there are no snapshots without the snapshotter; set sidecars.snapshotter.enabled to true, or remove the classes" }}
{{- end }}
{{- if and (eq $tls.mode "certManager") (ge (include "holdfast.seconds" $tls.certManager.renewBefore | int) (include "holdfast.seconds" $tls.certManager.duration | int)) }}
{{- fail (printf "tls.certManager: certificates with duration %s and renewBefore %s would be renewed continuously; renewBefore must be less than duration" $tls.certManager.duration $tls.certManager.renewBefore) }}
{{- end }}
{{- $warning := .Values.monitoring.prometheusRule.certificateWarning }}
{{- $renewal := include "holdfast.certificateRenewal" . }}
{{- if and $warning $renewal (ge (include "holdfast.seconds" $warning | int) ($renewal | int)) }}
{{- fail (printf "monitoring.prometheusRule.certificateWarning: certificates are renewed %s s before their expiry, so an alert %s before it would fire at each renewal; set a shorter time, or none" $renewal $warning) }}
{{- end }}
{{- $alerts := .Files.Get "files/alerts.yaml" | fromYaml }}
{{- range $name, $_ := .Values.monitoring.prometheusRule.alerts }}
{{- if not (hasKey $alerts $name) }}
{{- fail (printf "monitoring.prometheusRule.alerts: there is no alert %q; use one of %s" $name (keys $alerts | sortAlpha | join ", ")) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Takes a list of root, the key of the pools, and the pools. */}}
{{- define "holdfast.validate.pools" -}}
{{- $root := index . 0 }}
{{- $where := index . 1 }}
{{- $state := printf "%s/" (trimSuffix "/" $root.Values.stateDirectory) }}
{{- $kubelet := printf "%s/" (trimSuffix "/" $root.Values.kubeletDir) }}
{{- $names := list }}
{{- $paths := list }}
{{- range index . 2 }}
{{- if has .name $names }}
{{- fail (printf "%s: two pools have the name %q; use different names" $where .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- $path := printf "%s/" (trimSuffix "/" .path) }}
{{- range $paths }}
{{- if or (hasPrefix . $path) (hasPrefix $path .) }}
{{- fail (printf "%s: %s and %s overlap; use a separate directory for each pool" $where . $path) }}
{{- end }}
{{- end }}
{{- $paths = append $paths $path }}
{{- if or (hasPrefix $path $state) (hasPrefix $state $path) }}
{{- fail (printf "%s: the pool in %s and stateDirectory overlap; choose another directory for one of them" $where .path) }}
{{- end }}
{{- if or (hasPrefix $path $kubelet) (hasPrefix $kubelet $path) }}
{{- fail (printf "%s: the pool in %s and kubeletDir overlap; choose another directory for the pool" $where .path) }}
{{- end }}
{{- end }}
{{- end }}
