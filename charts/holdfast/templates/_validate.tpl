{{/* What values.schema.json cannot say. */}}
{{- define "holdfast.validate" -}}
{{- $tls := .Values.tls }}
{{- $fullname := include "holdfast.fullname" . }}
{{- /* What is appended needs the rest of a label: a StatefulSet's name and its pods' are labels. */}}
{{- $label := "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$" }}
{{- if not (regexMatch $label $fullname) }}
{{- /* What the chart made of it when it still cut names. */}}
{{- $cut := $fullname | trunc 40 | trimSuffix "-" }}
{{- $keep := ternary (printf "; fullnameOverride=%s keeps what an earlier chart installed" $cut) "" (regexMatch $label $cut) }}
{{- fail (printf "all objects' names would begin with %q, which is no label of at most 40 characters that begins with a letter; choose another release name, or say fullnameOverride%s" $fullname $keep) }}
{{- end }}
{{- /* What a chart above passes is for all its charts, and not ours to refuse. */}}
{{- if and .Chart.IsRoot .Values.global }}
{{- fail (printf "global.%s: this chart has no global values; every value it has is in its values.yaml" (keys .Values.global | sortAlpha | first)) }}
{{- end }}
{{- /* An address of a Unix socket has 107 bytes, and kubelet finds these two below its own directory. */}}
{{- $driver := include "holdfast.driver" . }}
{{- $registration := ternary (printf "kubelet@%s-reg.sock" $driver) (printf "%s-reg.sock" $driver) (eq .Values.node.registration "self") }}
{{- range list (printf "plugins_registry/%s" $registration) (printf "plugins/%s/csi.sock" $driver) }}
{{- $socket := printf "%s/%s" $.Values.kubeletDir . }}
{{- if gt (len $socket) 107 }}
{{- fail (printf "kubeletDir: the socket %s would have %d bytes, and an address of a socket has 107 at most; kubelet needs a shorter root directory" $socket (len $socket)) }}
{{- end }}
{{- end }}
{{- $pods := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/part-of" "csi.holdfast.storage/unit" }}
{{- $objects := concat $pods (list "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart") }}
{{- range list (list "commonLabels" .Values.commonLabels $objects) (list "controller.podLabels" .Values.controller.podLabels $pods) (list "node.podLabels" .Values.node.podLabels $pods) }}
{{- $where := index . 0 }}
{{- $own := index . 2 }}
{{- range $key, $_ := index . 1 }}
{{- if has $key $own }}
{{- fail (printf "%s: %s is the chart's own, and selectors go by such labels; choose another key" $where $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $where, $given := dict "controller.extraEnv" .Values.controller.extraEnv "node.extraEnv" .Values.node.extraEnv }}
{{- range $given }}
{{- if has .name (list "NODE_NAME" "HOST_IP" "HOLDFAST_CONTROLLER") }}
{{- fail (printf "%s: %s is the chart's own" $where .name) }}
{{- end }}
{{- end }}
{{- end }}
{{- $network := .Values.network }}
{{- /* 8081 to 8084 are the sidecars'. */}}
{{- $ports := dict "8081" "the provisioner's" "8082" "the attacher's" "8083" "the resizer's" "8084" "the snapshotter's" }}
{{- range $name := list "controllerPort" "enrolPort" "controllerMetricsPort" }}
{{- $port := get $network $name | toString }}
{{- if hasKey $ports $port }}
{{- fail (printf "network.%s: %s is %s already; each port of a controller's pod is for one thing" $name $port (get $ports $port)) }}
{{- end }}
{{- $_ := set $ports $port (printf "network.%s" $name) }}
{{- end }}
{{- if eq (toString $network.nodePort) (toString $network.nodeMetricsPort) }}
{{- fail "network: nodePort and nodeMetricsPort are both ports of the node's address; give each its own" }}
{{- end }}
{{- $election := .Values.sidecars.leaderElection }}
{{- $lease := include "holdfast.seconds" $election.leaseDuration | int }}
{{- $deadline := include "holdfast.seconds" $election.renewDeadline | int }}
{{- if or (le $lease $deadline) (le (mul $deadline 10) (mul (include "holdfast.seconds" $election.retryPeriod) 12)) }}
{{- fail (printf "sidecars.leaderElection: leaseDuration must be more than renewDeadline, and that more than 1.2 of retryPeriod, or the sidecars do not start; they are %s, %s and %s" $election.leaseDuration $election.renewDeadline $election.retryPeriod) }}
{{- end }}
{{- $life := include "holdfast.seconds" $tls.auto.certificateLife | int }}
{{- if or (lt $life 15) (gt $life 71280000) }}
{{- fail (printf "tls.auto.certificateLife: %s is not from 15s to 19800h" $tls.auto.certificateLife) }}
{{- end }}
{{- range $where, $annotations := dict "controller.podAnnotations" .Values.controller.podAnnotations "node.podAnnotations" .Values.node.podAnnotations }}
{{- range $key, $_ := $annotations }}
{{- if has $key (list "checksum/config" "kubectl.kubernetes.io/default-container") }}
{{- fail (printf "%s: %s is the chart's own; choose another key" $where $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- if eq $tls.mode "insecurePlainText" }}
{{- if ne $tls.insecurePlainText.confirm "yes, for tests only" }}
{{- fail "tls.mode insecurePlainText: anybody who reaches the ports of controllers and nodes can take or destroy every volume; if this is a test, say tls.insecurePlainText.confirm=\"yes, for tests only\"" }}
{{- end }}
{{- end }}
{{- if and (eq $tls.mode "files") (not $tls.files.controllerSecret) }}
{{- fail "tls.mode files: name the controllers' Secret in tls.files.controllerSecret; it holds ca.crt, tls.crt and tls.key (holdfast ca issue --dir CA --role controller --out DIR; docs/install.md, \"Certificates\")" }}
{{- end }}
{{- if and (eq $tls.mode "auto") (eq (include "holdfast.node.account" .) (include "holdfast.controller.account" .)) }}
{{- fail "tls.mode auto: whoever has the nodes' account gets a node's certificate; give nodes and controllers a ServiceAccount each" }}
{{- end }}
{{- if and (eq $tls.mode "auto") (has "default" (list (include "holdfast.node.account" .) (include "holdfast.controller.account" .))) }}
{{- fail "tls.mode auto: every pod of the namespace may have the account default, and with it a node's certificate, or read the CA's key; name ServiceAccounts of their own in node.serviceAccount.name and controller.serviceAccount.name" }}
{{- end }}
{{- if and (eq $tls.mode "auto") (not (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version)) }}
{{- fail (printf "tls.mode auto: tokens of Kubernetes %s do not name the pod's node; 1.32 or later is needed, or tls.mode files or certManager" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- if and (eq $tls.mode "certManager") (not $tls.certManager.nodes) }}
{{- fail "tls.mode certManager: list the nodes in tls.certManager.nodes; each gets a certificate with its own name" }}
{{- end }}
{{- range (fromYaml (include "holdfast.tls.nodeSecrets" .)).nodes }}
{{- if gt (len .node) 63 }}
{{- fail (printf "node %q: certificates for names of more than 63 characters cannot be made by the chart; use tls.mode files with tls.files.nodeDirectory" .node) }}
{{- end }}
{{- end }}
{{- $nodes := list }}
{{- $secrets := list }}
{{- if eq $tls.mode "files" }}
{{- range $tls.files.nodeSecrets }}
{{- if has .node $nodes }}
{{- fail (printf "tls.files.nodeSecrets: node %q is there twice; a node has one Secret" .node) }}
{{- end }}
{{- if has .secretName (append $secrets $tls.files.controllerSecret) }}
{{- fail (printf "tls.files.nodeSecrets: Secret %q is not of node %q alone; each certificate is for one name, and nobody is to read another's key" .secretName .node) }}
{{- end }}
{{- $nodes = append $nodes .node }}
{{- $secrets = append $secrets .secretName }}
{{- end }}
{{- end }}
{{- $names := list }}
{{- range .Values.nodeGroups }}
{{- if has .name $names }}
{{- fail (printf "nodeGroups: there are two called %q; give each a name of its own" .name) }}
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
{{- fail (printf "nodeGroups: %s and %s would both be the DaemonSet %s; give one of the groups another name" (get $units .name) $of .name) }}
{{- end }}
{{- $_ := set $units .name $of }}
{{- $configs = append $configs .config }}
{{- end }}
{{- if and (eq $tls.mode "auto") (has (include "holdfast.tls.authority" .) (concat (keys $units) $configs (list (include "holdfast.controller" .) (include "holdfast.snapshotController" .) (printf "%s-dashboard" $fullname)))) }}
{{- fail (printf "tls.auto.authority: the chart itself makes an object %s; choose another name" (include "holdfast.tls.authority" .)) }}
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
{{- fail (printf "storageClasses: there are two called %q; give each a name of its own" .name) }}
{{- end }}
{{- $classes = append $classes .name }}
{{- $pool := (.parameters | default dict).pool }}
{{- if and $pool (not (has $pool $pools)) }}
{{- fail (printf "storageClasses %s: no node has a pool %q, so no volume of this class would be made; pools are %s" .name $pool (join ", " $pools)) }}
{{- end }}
{{- if and (not $pool) (not $hasDefault) (not (has "default" $pools)) }}
{{- fail (printf "storageClasses %s: it names no pool, every node has several, and none of them is called default; set parameters.pool to one of %s" .name (join ", " $pools)) }}
{{- end }}
{{- if .isDefault }}{{ $default = append $default .name }}{{ end }}
{{- end }}
{{- if gt (len $default) 1 }}
{{- fail (printf "storageClasses: %s are all marked isDefault; a cluster has one default" (join " and " $default)) }}
{{- end }}
{{- if and .Values.volumeSnapshotClasses (not .Values.sidecars.snapshotter.enabled) }}
{{- fail "volumeSnapshotClasses: nobody makes snapshots while sidecars.snapshotter.enabled is false" }}
{{- end }}
{{- if and (eq $tls.mode "certManager") (ge (include "holdfast.seconds" $tls.certManager.renewBefore | int) (include "holdfast.seconds" $tls.certManager.duration | int)) }}
{{- fail (printf "tls.certManager: certificates of %s that are renewed %s before their end would be renewed all the time; renewBefore must be less than duration" $tls.certManager.duration $tls.certManager.renewBefore) }}
{{- end }}
{{- $warning := .Values.monitoring.prometheusRule.certificateWarning }}
{{- $renewal := include "holdfast.certificateRenewal" . }}
{{- if and $warning $renewal (ge (include "holdfast.seconds" $warning | int) ($renewal | int)) }}
{{- fail (printf "monitoring.prometheusRule.certificateWarning: certificates are renewed %s s before their end, so an alert %s before it would come each time; say less, or nothing" $renewal $warning) }}
{{- end }}
{{- $alerts := .Files.Get "files/alerts.yaml" | fromYaml }}
{{- range $name, $_ := .Values.monitoring.prometheusRule.alerts }}
{{- if not (hasKey $alerts $name) }}
{{- fail (printf "monitoring.prometheusRule.alerts: there is no alert %q; there are %s" $name (keys $alerts | sortAlpha | join ", ")) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Takes a list of root, where it is said, and pools. */}}
{{- define "holdfast.validate.pools" -}}
{{- $root := index . 0 }}
{{- $where := index . 1 }}
{{- $state := printf "%s/" (trimSuffix "/" $root.Values.stateDirectory) }}
{{- $kubelet := printf "%s/" (trimSuffix "/" $root.Values.kubeletDir) }}
{{- $names := list }}
{{- $paths := list }}
{{- range index . 2 }}
{{- if has .name $names }}
{{- fail (printf "%s: there are two called %q; give each a name of its own" $where .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- $path := printf "%s/" (trimSuffix "/" .path) }}
{{- range $paths }}
{{- if or (hasPrefix . $path) (hasPrefix $path .) }}
{{- fail (printf "%s: %s and %s lie in one another; give each pool a directory of its own" $where . $path) }}
{{- end }}
{{- end }}
{{- $paths = append $paths $path }}
{{- if or (hasPrefix $path $state) (hasPrefix $state $path) }}
{{- fail (printf "%s: the pool in %s and stateDirectory lie in one another; choose another place for one of them" $where .path) }}
{{- end }}
{{- if or (hasPrefix $path $kubelet) (hasPrefix $kubelet $path) }}
{{- fail (printf "%s: the pool in %s and kubeletDir lie in one another; choose another place for the pool" $where .path) }}
{{- end }}
{{- end }}
{{- end }}
