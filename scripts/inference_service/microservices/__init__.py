"""The inference microservices of this skill: what runs inside a container, or as a process of this machine."""
