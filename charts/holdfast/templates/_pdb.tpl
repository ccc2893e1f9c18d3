{{/* A budget that lets replicas stop one at a time. Takes a dict of `root`, `name`, `component` and `values`. */}}
{{- define "holdfast.pdb" -}}
{{- if and (.values.podDisruptionBudget | default dict).enabled (gt (int .values.replicas) 1) -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  namespace: {{ toYaml .root.Release.Namespace }}
  labels:
    {{- include "holdfast.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  maxUnavailable: 1
  # A replica that does not start must not block a drain.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "holdfast.selector" .root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
{{- end }}
{{- end }}
