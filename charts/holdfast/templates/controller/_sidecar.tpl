{{/*
The container of a sidecar. Takes a dict of `root`, `name`, `port` and `args`. It runs as the user of the driver's
container, because only that user can open the driver's socket. The entry point of its image is the sidecar.
*/}}
{{- define "holdfast.sidecar" -}}
{{- $values := index .root.Values.sidecars .name -}}
{{- $election := .root.Values.sidecars.leaderElection -}}
- name: {{ .name }}
  image: {{ include "holdfast.image" (list $values.image "") }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  args:
    - --v={{ include "holdfast.number" .root.Values.sidecars.logLevel }}
    - --csi-address=/csi/csi.sock
    - --http-endpoint=:{{ .port }}
    - --timeout={{ $values.timeout }}
    - --kube-api-qps={{ include "holdfast.number" .root.Values.sidecars.kubeApi.qps }}
    - --kube-api-burst={{ include "holdfast.number" .root.Values.sidecars.kubeApi.burst }}
    - --leader-election
    - --leader-election-namespace=$(NAMESPACE)
    - --leader-election-lease-duration={{ $election.leaseDuration }}
    - --leader-election-renew-deadline={{ $election.renewDeadline }}
    - --leader-election-retry-period={{ $election.retryPeriod }}
    {{- range .args }}
    - {{ . }}
    {{- end }}
    {{- with $values.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  env:
    - name: NAMESPACE
      valueFrom:
        fieldRef:
          fieldPath: metadata.namespace
    - name: POD_NAME
      valueFrom:
        fieldRef:
          fieldPath: metadata.name
  ports:
    - name: {{ .name }}
      containerPort: {{ .port }}
  # A leader that cannot renew its lease is restarted, so that another one becomes the leader.
  livenessProbe:
    httpGet:
      path: /healthz/leader-election
      port: {{ .name }}
    initialDelaySeconds: 10
    periodSeconds: 20
    timeoutSeconds: 10
  securityContext:
    {{- toYaml .root.Values.controller.securityContext | nindent 4 }}
  resources:
    {{- toYaml $values.resources | nindent 4 }}
  volumeMounts:
    - name: socket
      mountPath: /csi
{{- end }}
